"""ParamGraph: the structure of one architecture, with its symmetries; it holds no weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from paramgraph.errors import GraphError
from paramgraph.explicit import MAX_EDGES, ExplicitGraph, expand, to_networkx, to_pyg
from paramgraph.structure import (
    AxisGroup,
    EdgeBlock,
    NeuronGroup,
    NeuronKind,
    ParameterLayout,
    ScaleGroup,
    ScaleKind,
)
from paramgraph.symmetry import Symmetry, draw_symmetry
from paramgraph.values import Values, read_values, write_values
from paramgraph.views import part_sizes

__all__ = ["ParamGraph"]


@dataclass(frozen=True, eq=False)
class ParamGraph:
    """The neurons, edges and symmetries of one architecture, as ``capture`` finds them.

    Attributes:
        name: Class name of the network.
        neuron_groups: Nodes, in dataflow order.
        blocks: Edges, in dataflow order.
        axis_groups: Permutations, free and frozen.
        scale_groups: Scales and signs.
        parameters: Parameters and running statistics that the graph holds.
        unused_parameters: Parameters that do not reach the output; they are no part of the graph.
        constant_parameters: Parameters that do, but are constants (tables that are not trained).
        unknown_operations: Operations without a rule; what they read is not permuted.
        repairs: What was taken out because it did not hold on the network (``repair``).
        output: Which outputs the symmetries keep, as given to ``capture``.
        program: What the network computes, as a ``Program`` of ``capture`` that runs with any
            weights; a text where there is none, which says why; ``None`` for a graph that was not
            captured.

    Example:
        >>> import torch, paramgraph as pg
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> graph.num_neurons, graph.num_edges, graph.num_parameters
        (5, 6, 8)

    References:
        Kofinas et al. 2024, section 2 (https://arxiv.org/abs/2403.12143); Lim et al. 2024,
        section 3 (https://arxiv.org/abs/2312.04501).
    """

    name: str
    neuron_groups: tuple[NeuronGroup, ...]
    blocks: tuple[EdgeBlock, ...]
    axis_groups: tuple[AxisGroup, ...]
    scale_groups: tuple[ScaleGroup, ...]
    parameters: tuple[ParameterLayout, ...]
    unused_parameters: tuple[str, ...] = ()
    constant_parameters: tuple[str, ...] = ()
    unknown_operations: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    output: Any = None
    program: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the tables against each other."""
        for block in self.blocks:
            num_receivers = block.num_blocks * block.num_receivers
            num_senders = block.num_blocks * block.num_senders
            sender, receiver = self.neuron_groups[block.sender], self.neuron_groups[block.receiver]
            if (num_senders, num_receivers) != (sender.size, receiver.size):
                raise GraphError(
                    f"block {block.name!r} joins {num_senders} senders with {num_receivers} "
                    f"receivers, but its groups {sender.name!r} and {receiver.name!r} have "
                    f"{sender.size} and {receiver.size} neurons."
                )
            if sender.depth >= receiver.depth:
                raise GraphError(
                    f"block {block.name!r} leads from depth {sender.depth} to depth "
                    f"{receiver.depth}; edges must lead forward."
                )
        sizes = {
            (layout.name, number): num
            for layout in self.parameters
            for number, num in enumerate(part_sizes(layout))
        }
        views = [b.view for b in self.blocks if b.view] + [
            f.view for g in self.neuron_groups for f in g.features
        ]
        read = {(view.parameter, view.part) for view in views}
        if unknown := read - sizes.keys():
            names = sorted({parameter for parameter, _ in unknown})
            raise GraphError(f"blocks read parameters without a layout: {names}.")
        if missing := sizes.keys() - read:
            names = sorted({parameter for parameter, _ in missing})
            raise GraphError(f"parameters in no block and no feature: {names}.")
        for view in views:
            if math.prod(view.shape) != sizes[view.parameter, view.part]:
                raise GraphError(
                    f"the view of {view.parameter!r} reads {math.prod(view.shape)} entries of "
                    f"{sizes[view.parameter, view.part]}; each must be read exactly once."
                )

    @property
    def num_neurons(self) -> int:
        """Number of neurons, inputs included."""
        return sum(group.size for group in self.neuron_groups)

    @property
    def num_edges(self) -> int:
        """Number of (receiver, sender) pairs over all blocks, skips included."""
        return sum(block.num_edges for block in self.blocks)

    @property
    def num_parameters(self) -> int:
        """Number of trained scalars in the graph, tied ones once."""
        return sum(row.num_entries for row in self.parameters if not row.is_buffer)

    @property
    def num_outputs(self) -> int:
        """Number of output neurons."""
        return sum(g.size for g in self.neuron_groups if g.kind is NeuronKind.OUTPUT)

    @property
    def depth(self) -> int:
        """Depth of the deepest neuron group."""
        return max(group.depth for group in self.neuron_groups)

    @cached_property
    def signature(self) -> str:
        """Hash of the structure: equal for two captures of one architecture."""
        tables = (self.neuron_groups, self.blocks, self.axis_groups, self.scale_groups)
        return hashlib.sha256(repr((tables, self.parameters)).encode()).hexdigest()[:16]

    @property
    def function_key(self) -> str:
        """Hash of structure and program: equal for networks that weights alone tell apart."""
        return f"{self.signature}-{getattr(self.program, 'digest', '')}"

    def neuron_scales(self, kind: ScaleKind) -> list[ScaleGroup]:
        """The scale groups of a kind that act on neurons one by one, in the order of the neurons.

        Others flip or rescale a whole layer by one factor (all signs in front of a LayerNorm), or
        act on parameters only.

        Example:
            >>> import torch, paramgraph as pg
            >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
            >>> pg.capture(network, torch.randn(4, 2)).neuron_scales(ScaleKind.POSITIVE)
            []
        """
        sizes = {row.name: row.size for row in self.axis_groups}
        rows = {row.name: row for row in self.scale_groups if row.kind is kind}
        found: dict[str, ScaleGroup] = {}
        coarse: set[str] = set()
        for group in self.neuron_groups:
            own = {f for f in group.axes if isinstance(f, str) and sizes[f] > 1}
            for name, _ in group.scale_exponents:
                if name in rows:
                    found[name] = rows[name]
                    if not set(rows[name].axes) >= own:
                        coarse.add(name)
        return [row for name, row in found.items() if name not in coarse]

    def log_group_size(self) -> float:
        """Natural logarithm of the number of permutations found."""
        sizes = {group.name: group.size for group in self.axis_groups}
        return sum(
            group.log_size(math.prod(sizes[name] for name in group.given))
            for group in self.axis_groups
        )

    def features(
        self, state_dicts: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]
    ) -> Values:
        """Read the weights of one or many networks.

        Args:
            state_dicts: One state dict, a list of them, or one of stacked ``[B, ...]`` tensors.

        Returns:
            Values of B networks, differentiable functions of the parameters.

        Raises:
            GraphError: A parameter is missing or has another shape.
        """
        return read_values(state_dicts, self.parameters, self.neuron_groups, self.blocks)

    def write_back(self, values: Values, *, tied: str = "mean") -> dict[str, Tensor]:
        """Turn values into stacked parameters ``[B, ...]``, the inverse of ``features``.

        Args:
            values: Entries of B networks, for example edited by a metanetwork.
            tied: A parameter with several blocks gets their ``"mean"`` or their ``"sum"``.

        Returns:
            For each parameter and alias a tensor ``[B, *shape]``.
        """
        return write_values(values, self.parameters, self.neuron_groups, self.blocks, tied=tied)

    def run(
        self,
        parameters: Values | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        *inputs: Any,
        **named: Any,
    ) -> Any:
        """What the captured network returns with other weights and on other inputs.

        Vectorised over networks, differentiable in weights and inputs. Networks are run as on the
        (first) example inputs of ``capture``, in evaluation mode.

        Args:
            parameters: Values, or state dicts as for ``features``, of B networks.
            inputs: The arguments of the network, the same for all; any number of samples.
            named: Its keyword arguments, where ``capture`` was given a mapping.

        Returns:
            ``[B, *shape]``, or a tuple of these where the network returns several tensors.

        Raises:
            GraphError: Weights or inputs do not fit, the graph was not captured, or the network
                does not always compute the same way.

        Example:
            >>> import torch, paramgraph as pg
            >>> network, points = torch.nn.Linear(3, 2), torch.randn(7, 3)
            >>> graph = pg.capture(network, torch.randn(4, 3))
            >>> outputs = graph.run([network.state_dict()] * 5, points)
            >>> outputs.shape, torch.allclose(outputs[0], network(points), atol=1e-6)
            (torch.Size([5, 7, 2]), True)
        """
        found = self._runnable().run(self._stacked(parameters), named or inputs)
        return found[0] if len(found) == 1 else tuple(found)

    def activations(
        self,
        parameters: Values | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        *inputs: Any,
        **named: Any,
    ) -> list[Tensor | None]:
        """What the neurons of the captured network say with other weights and on other inputs.

        Args:
            parameters: As for ``run``.
            inputs: As for ``run``, M samples.
            named: As for ``run``.

        Returns:
            For each neuron group ``[B, M, size]``: inputs, hidden neurons after their activation,
            outputs; means over positions (pixels, tokens) where there are several. ``None`` for
            neurons whose values stand nowhere, such as rows of a table.

        Raises:
            GraphError: As for ``run``.

        Example:
            >>> import torch, paramgraph as pg
            >>> network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
            >>> graph = pg.capture(network, torch.randn(4, 3))
            >>> [tuple(a.shape) for a in graph.activations(network.state_dict(), torch.ones(7, 3))]
            [(1, 7, 3), (1, 7, 4)]
        """
        found = self._runnable().activations(self._stacked(parameters), named or inputs)
        return [None if values is None else values[..., 0] for values in found]

    def _runnable(self) -> Any:
        if self.program is None or isinstance(self.program, str):
            why = self.program or "it was not made by capture"
            raise GraphError(
                f"{self.name} cannot be run with other weights or inputs: {why}. Use a "
                "metanetwork without probes for it."
            )
        return self.program

    def _stacked(
        self, parameters: Values | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        if not isinstance(parameters, Values):
            parameters = self.features(parameters)
        return self.write_back(parameters)

    def expand(
        self, encoding: str = "neural", *, dataflow: bool = True, max_edges: int = MAX_EDGES
    ) -> ExplicitGraph:
        """This graph as nodes and edges; the arguments are those of ``explicit.expand``.

        Example:
            >>> import torch, paramgraph as pg
            >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
            >>> graph.expand("parameter").num_edges == graph.num_parameters
            True
        """
        return expand(self, encoding, dataflow=dataflow, max_edges=max_edges)

    def to_pyg(
        self,
        values: Values | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        encoding: str = "neural",
        *,
        dataflow: bool = True,
        num_positions: int | None = None,
        max_edges: int = MAX_EDGES,
    ) -> Any:
        """Networks as PyTorch Geometric ``Data``; the arguments are those of ``explicit.to_pyg``.

        Example:
            >>> import pytest, torch, paramgraph as pg
            >>> _ = pytest.importorskip("torch_geometric")
            >>> network = torch.nn.Linear(3, 2)
            >>> graph = pg.capture(network, torch.randn(4, 3))
            >>> graph.to_pyg([network.state_dict()] * 4, "parameter")[0].num_edges
            8
        """
        return to_pyg(
            self,
            values,
            encoding,
            dataflow=dataflow,
            num_positions=num_positions,
            max_edges=max_edges,
        )

    def to_networkx(
        self,
        values: Values | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        encoding: str = "neural",
        *,
        dataflow: bool = True,
    ) -> Any:
        """One network as a ``MultiDiGraph``; the arguments are those of ``explicit.to_networkx``.

        Example:
            >>> import pytest, torch, paramgraph as pg
            >>> _ = pytest.importorskip("networkx")
            >>> network = torch.nn.Linear(3, 2)
            >>> graph = pg.capture(network, torch.randn(4, 3))
            >>> graph.to_networkx(network.state_dict()).number_of_nodes()
            5
        """
        return to_networkx(self, values, encoding, dataflow=dataflow)

    def sample_symmetry(
        self,
        generator: torch.Generator | None = None,
        *,
        permute: bool = True,
        scale: bool = False,
        phase: bool = False,
        scale_range: float = 10.0,
    ) -> Symmetry:
        """Draw a random element of the group found.

        Args:
            generator: Source of randomness.
            permute: Draw permutations.
            scale: Draw positive scales and signs too.
            phase: Draw shifts of sines too. They act on parameters, but on no single neuron value.
            scale_range: Positive factors are log-uniform in ``[1 / scale_range, scale_range]``.

        Returns:
            A symmetry to apply to state dicts; no free axis group keeps its order.
        """
        return draw_symmetry(
            self.axis_groups,
            self.scale_groups,
            self.parameters,
            self.neuron_groups,
            generator=generator,
            permute=permute,
            scale=scale,
            phase=phase,
            scale_range=scale_range,
        )

    def summary(self) -> str:
        """A table that a person can read: groups, edges, symmetries.

        Example:
            >>> import torch, paramgraph as pg
            >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
            >>> print(graph.summary().splitlines()[0])
            Linear: 5 neurons, 6 edges, 8 parameters, 10^0.0 permutations
        """
        head = (
            f"{self.name}: {self.num_neurons} neurons, {self.num_edges} edges, "
            f"{self.num_parameters} parameters, "
            f"10^{self.log_group_size() / math.log(10):.1f} permutations"
        )
        groups = [("neurons", "size", "kind", "depth", "activation", "scale", "permutation")]
        axis = {group.name: group for group in self.axis_groups}
        for group in self.neuron_groups:
            moves = [axis[f].name for f in group.axes if isinstance(f, str) and axis[f].free]
            text = group.activation_text or "-"
            scale = "-" if group.scale is ScaleKind.NONE else group.scale.value
            groups.append(
                (
                    group.name,
                    str(group.size),
                    group.kind.value,
                    str(group.depth),
                    text,
                    scale,
                    " x ".join(moves) or "-",
                )
            )
        edges = [("edges", "kind", "from", "to", "shape")]
        for block in self.blocks:
            sender, receiver = self.neuron_groups[block.sender], self.neuron_groups[block.receiver]
            shape = " x ".join(map(str, block.shape))
            edges.append((block.name, block.kind.value, sender.name, receiver.name, shape))
        frozen = [("axis group", "size", "free", "why not, or given")]
        for row in self.axis_groups:
            note = row.reason or (f"given {', '.join(row.given)}" if row.given else "")
            frozen.append((row.name, str(row.size), "yes" if row.free else "no", note))
        parts = [head, "", *_table(groups), "", *_table(edges), "", *_table(frozen)]
        if self.unused_parameters:
            parts += ["", "unused parameters: " + ", ".join(self.unused_parameters)]
        if self.constant_parameters:
            parts += ["", "constant parameters: " + ", ".join(self.constant_parameters)]
        if self.unknown_operations:
            parts += ["", "operations without a rule: " + ", ".join(self.unknown_operations)]
        return "\n".join(parts)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]
