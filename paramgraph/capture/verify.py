"""Check a graph on the network itself: draw symmetries, apply them, compare the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramgraph.capture.running import (
    ExampleInputs,
    detached,
    evaluation_copy,
    kept_random_state,
    output_tensors,
    run_network,
)
from paramgraph.errors import CaptureError, GraphError
from paramgraph.graph import ParamGraph
from paramgraph.structure import NeuronRole

__all__ = ["Verification", "assert_unused", "verify"]


def assert_unused(network: nn.Module, graph: ParamGraph, example_inputs: ExampleInputs) -> None:
    """Check on the network itself that the parameters outside the graph do not matter.

    A weight that reaches the output on a way that cannot be recorded (``tolist()``, a C extension)
    would look unused, and the graph complete.

    Args:
        network: The network that was captured; it is not changed.
        graph: Its graph.
        example_inputs: Inputs as for ``capture``.

    Raises:
        CaptureError: The outputs change with an unused parameter.
    """
    if not graph.unused_parameters:
        return
    network = evaluation_copy(network)
    reference = _outputs(network, {}, example_inputs)
    parameters = dict(network.named_parameters())
    for name in graph.unused_parameters:
        parameters[name].data += 1
        changed = _outputs(network, {}, example_inputs)
        for before, after in zip(reference, changed, strict=True):
            if not torch.allclose(before, after, rtol=1e-6, atol=0.0, equal_nan=True):
                raise CaptureError(
                    f"parameter {name!r} changes the outputs of {graph.name}, but no recorded "
                    "operation reads it (tolist(), numpy, an extension?), so the graph would lack "
                    "it. Use torch operations on the parameter itself."
                )


@dataclass(frozen=True)
class Verification:
    """What ``verify`` measured.

    Attributes:
        max_error: Largest change of any output, relative to the largest output.
        tolerance: Largest change allowed.
        num_draws: How many symmetries were drawn.
        num_free_groups: Axis groups that may be permuted.
        num_scale_groups: Scale groups found.
    """

    max_error: float
    tolerance: float
    num_draws: int
    num_free_groups: int
    num_scale_groups: int

    @property
    def passed(self) -> bool:
        """Whether every drawn symmetry left the outputs as they were."""
        return self.max_error <= self.tolerance

    def __str__(self) -> str:
        word = "passed" if self.passed else "FAILED"
        return (
            f"verification {word}: max error {self.max_error:.1e} (tolerance {self.tolerance:.0e}) "
            f"over {self.num_draws} draws, {self.num_free_groups} free axis groups, "
            f"{self.num_scale_groups} scale groups"
        )


def verify(
    network: nn.Module,
    graph: ParamGraph,
    example_inputs: ExampleInputs,
    *,
    num_draws: int = 4,
    scale: bool = True,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> Verification:
    """Draw symmetries of the graph and check that they keep the network's function.

    The check runs in float64 on a copy whose weights are first disturbed, so that gains of 1 and
    biases of 0 cannot hide a wrong permutation.

    Args:
        network: The network that was captured; it is not changed.
        graph: Its graph.
        example_inputs: Inputs as for ``capture``.
        num_draws: Number of symmetries.
        scale: Check scale and sign symmetries too.
        tolerance: Largest allowed change, relative to the largest output.
        seed: Of the draws.

    Returns:
        The largest change found, and whether it passed.

    Raises:
        GraphError: The outputs are not finite, so nothing can be compared.

    Example:
        >>> import paramgraph as pg
        >>> network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> pg.verify(network, pg.capture(network, torch.randn(4, 3)), torch.randn(4, 3)).passed
        True
    """
    generator = torch.Generator().manual_seed(seed)
    network = evaluation_copy(network).cpu().double()
    inputs = _double(example_inputs)
    state = _disturbed(graph, network.state_dict(), generator)
    reference = _outputs(network, state, inputs)
    largest = max(float(out.abs().max()) for out in reference)
    if not all(bool(out.isfinite().all()) for out in reference):
        raise GraphError(f"{graph.name}: the outputs are not finite, so nothing can be compared.")
    worst = 0.0
    for draw in range(num_draws):
        symmetry = graph.sample_symmetry(generator, scale=scale and draw % 2 == 1)
        changed = _outputs(network, symmetry.apply(state), inputs)
        for before, after in zip(reference, changed, strict=True):
            worst = max(worst, float((before - after).abs().max()) / max(largest, 1e-30))
    return Verification(
        max_error=worst,
        tolerance=tolerance,
        num_draws=num_draws,
        num_free_groups=sum(group.free for group in graph.axis_groups),
        num_scale_groups=len(graph.scale_groups),
    )


def _disturbed(
    graph: ParamGraph, state: dict[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The parameters with noise as large as themselves (variances stay positive)."""
    variances = {
        feature.view.parameter
        for group in graph.neuron_groups
        for feature in group.features
        if feature.role is NeuronRole.VARIANCE
    }
    # Copies, because a network may change its own buffers while it runs.
    result = {name: value.clone() for name, value in state.items()}
    for layout in graph.parameters:
        value = state[layout.name]
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if layout.name in variances:
            value = value * (0.3 * noise).exp()
        else:
            value = value + 0.3 * noise * (value.square().mean().sqrt() + 0.1)
        for name in (layout.name, *layout.aliases):
            result[name] = value
    return result


def _outputs(network: nn.Module, state: dict[str, Tensor], inputs: ExampleInputs) -> list[Tensor]:
    with torch.no_grad(), kept_random_state(network):
        torch.manual_seed(0)
        network.load_state_dict(state, strict=bool(state))
        outputs = output_tensors(run_network(network, detached(inputs)))
        return [out.detach().clone().double() for out in outputs]


def _double(value: ExampleInputs) -> ExampleInputs:
    if isinstance(value, Tensor):
        return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _double(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_double(item) for item in value)
    return value
