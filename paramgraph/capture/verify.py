"""Check a graph on the network itself: draw symmetries, apply them, compare the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paramgraph.capture.running import (
    ExampleInputs,
    chosen_output,
    detached,
    evaluation_copy,
    exact_copy,
    output_tensors,
    plain_execution,
    rebuilt,
    run_network,
)
from paramgraph.errors import CaptureError, GraphError
from paramgraph.graph import ParamGraph
from paramgraph.structure import NeuronRole
from paramgraph.views import get_parameter, set_parameter

__all__ = ["Probe", "Verification", "assert_unused", "verify"]

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True)
class Verification:
    """What ``verify`` measured.

    Attributes:
        max_error: Largest change of any output, relative to the largest output.
        tolerance: Largest change allowed.
        num_draws: How many symmetries were drawn.
        num_free_groups: Axis groups that may be permuted.
        num_scale_groups: Scale groups found.
        dtype: What it was computed in: ``float64``, or ``float32`` where that does not run.
    """

    max_error: float
    tolerance: float
    num_draws: int
    num_free_groups: int
    num_scale_groups: int
    dtype: str = "float64"

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


class _Precision(TorchDispatchMode):
    """Notes whether a run in float64 falls back to fewer digits on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reduced = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and args and isinstance(args[0], Tensor):
            low = result.is_floating_point() and result.dtype != torch.float64
            self.is_reduced |= low and args[0].dtype == torch.float64
        return result


class Probe:
    """A network that can be run with other weights, in float64 where it runs in that.

    Its weights are disturbed first, so that gains of 1 and biases of 0 cannot hide a wrong
    permutation. Every run is made on a copy that never ran before, because networks may keep
    tensors that depend on their weights.

    Attributes:
        state: The disturbed weights.
        reference: Outputs with these.
        dtype: What is computed in.
        tolerance: The largest change that rounding may cause.

    Raises:
        GraphError: The outputs are not finite in any precision, so nothing can be compared.
    """

    def __init__(
        self, network: nn.Module, graph: ParamGraph, inputs: ExampleInputs, seed: int = 0
    ) -> None:
        if any(p.is_meta for p in network.parameters()):
            raise GraphError(
                f"{graph.name} lies on the meta device and has no weights, so its symmetries "
                "cannot be checked on it. Build it with weights (random ones will do)."
            )
        self._graph = graph
        problems = []
        for dtype in (torch.float64, torch.float32):
            self.dtype = dtype
            self._network = evaluation_copy(network).cpu()._apply(partial(_cast, dtype=dtype))
            self._inputs = _cast(inputs, dtype)
            generator = torch.Generator().manual_seed(seed)
            self.state = _disturbed(graph, self._network.state_dict(), generator, dtype)
            try:
                with _Precision() as precision:
                    self.reference = self.outputs(self.state)
            except (RuntimeError, TypeError, ValueError) as error:
                problems.append(f"{dtype}: {error}")
                continue
            if any(bool(out.isfinite().any()) for out in self.reference):
                break
            problems.append(f"{dtype}: no finite output")
        else:
            raise GraphError(
                f"{graph.name}: the outputs are not finite, so nothing can be compared "
                f"({'; '.join(problems)})."
            )
        is_exact = dtype == torch.float64 and not precision.is_reduced
        self.tolerance = _TOLERANCES[torch.float64 if is_exact else torch.float32]
        finite = [out[out.isfinite()].abs() for out in self.reference]
        self._largest = max((float(out.max()) for out in finite if out.numel()), default=0.0)

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """What the network returns with these weights."""
        network = exact_copy(self._network)
        network.load_state_dict(state)
        with plain_execution(network):
            torch.manual_seed(0)
            result = run_network(network, detached(self._inputs))
            chosen = output_tensors(chosen_output(result, self._graph.output))
        real = [torch.view_as_real(out) if out.is_complex() else out for out in chosen]
        return [out.detach().clone().double() for out in real]

    def error(self, state: Mapping[str, Tensor]) -> float:
        """Largest change of an output, relative to the largest output."""
        worst = 0.0
        for before, after in zip(self.reference, self.outputs(state), strict=True):
            if before.shape != after.shape:
                return float("inf")
            change = (before - after).abs()
            change[(before == after) | (before.isnan() & after.isnan())] = 0.0
            if change.numel():
                worst = max(worst, float(change.nan_to_num(nan=float("inf")).max()))
        return worst / max(self._largest, 1e-30)


def verify(
    network: nn.Module,
    graph: ParamGraph,
    example_inputs: ExampleInputs | list[Any],
    *,
    num_draws: int = 4,
    scale: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Verification:
    """Draw symmetries of the graph and check that they keep the network's function.

    The check runs in float64 (float32 where the network does not run in float64) on a copy whose
    weights are first disturbed.

    Args:
        network: The network that was captured; it is not changed.
        graph: Its graph.
        example_inputs: Inputs as for ``capture``.
        num_draws: Number of symmetries.
        scale: Check scale and sign symmetries too.
        tolerance: Largest allowed change, relative to the largest output; by default 1e-10, and
            1e-4 where the network computes in float32.
        seed: Of the draws.

    Returns:
        The largest change found, and whether it passed.

    Raises:
        GraphError: The outputs are not finite, or there are no weights: nothing can be compared.

    Example:
        >>> import paramgraph as pg
        >>> network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> pg.verify(network, pg.capture(network, torch.randn(4, 3)), torch.randn(4, 3)).passed
        True
    """
    several = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    generator = torch.Generator().manual_seed(seed)
    worst, allowed, dtype = 0.0, 0.0, torch.float64
    for inputs in several:
        probe = Probe(network, graph, inputs, seed)
        allowed = max(allowed, probe.tolerance)
        dtype = probe.dtype if probe.dtype != torch.float64 else dtype
        for draw in range(num_draws):
            is_scaled = scale and draw % 2 == 1
            symmetry = graph.sample_symmetry(generator, scale=is_scaled, phase=is_scaled)
            worst = max(worst, probe.error(symmetry.apply(probe.state)))
    return Verification(
        max_error=worst,
        tolerance=allowed if tolerance is None else tolerance,
        num_draws=num_draws * len(several),
        num_free_groups=sum(group.free for group in graph.axis_groups),
        num_scale_groups=len(graph.scale_groups),
        dtype=str(dtype).removeprefix("torch."),
    )


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
    parameters = dict(network.named_parameters())
    unused = [name for name in graph.unused_parameters if not parameters[name].is_meta]
    if not unused:
        return

    def outputs(changed: list[str]) -> list[Tensor]:
        own = evaluation_copy(network, share_parameters=True)
        for name, parameter in own.named_parameters():
            if name in changed:
                # New memory: the copy shares its parameters with the network.
                parameter.data = parameter.data + 1
        with plain_execution(own):
            torch.manual_seed(0)
            result = run_network(own, detached(example_inputs))
            return output_tensors(chosen_output(result, graph.output))

    reference = outputs([])
    if _are_close(reference, outputs(unused)):
        return
    for name in unused:
        if not _are_close(reference, outputs([name])):
            raise CaptureError(
                f"parameter {name!r} changes the outputs of {graph.name}, but no recorded "
                "operation reads it (tolist(), numpy, an extension?), so the graph would lack "
                "it. Use torch operations on the parameter itself."
            )


def _are_close(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-6, atol=0.0, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _disturbed(
    graph: ParamGraph, state: dict[str, Tensor], generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The parameters with noise as large as themselves (variances stay positive)."""
    variances = {
        feature.view.parameter
        for group in graph.neuron_groups
        for feature in group.features
        if feature.role is NeuronRole.VARIANCE
    }
    # Copies, because a network may change its own buffers while it runs.
    result = {n: v.clone() if isinstance(v, Tensor) else v for n, v in state.items()}
    for layout in graph.parameters:
        value = get_parameter(state, layout)
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu")
        if layout.name in variances:
            value = value * (0.3 * noise).exp().to(dtype)
        else:
            size = value.double().square().mean().sqrt() + 0.1
            value = value + (0.3 * noise * size).to(dtype)
        set_parameter(result, layout, value)
    return result


def _cast(value: ExampleInputs, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        if value.is_complex():
            return value.detach().cpu().to(_COMPLEX[dtype])
        return value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype)
    return rebuilt(value, lambda item: _cast(item, dtype))
