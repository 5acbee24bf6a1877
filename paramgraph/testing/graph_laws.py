"""Laws of capture on one network: what a graph claims, checked on the network itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from paramgraph.capture import capture, verify
from paramgraph.capture.record import record
from paramgraph.capture.running import ExampleInputs, evaluation_copy
from paramgraph.capture.tape import TapeEntry
from paramgraph.errors import CaptureError, GraphError
from paramgraph.graph import ParamGraph
from paramgraph.structure import EdgeBlock
from paramgraph.testing.draws import StateDict, double_state, other_weights
from paramgraph.testing.report import LawReport, LawRow
from paramgraph.values import Values
from paramgraph.views import get_parameter, part_sizes, set_parameter, take_part

__all__ = ["check_graph"]


def check_graph(
    network: nn.Module,
    example_inputs: ExampleInputs | list[ExampleInputs],
    *,
    graph: ParamGraph | None = None,
    num_seeds: int = 20,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> LawReport:
    """Check the laws of capture on a network.

    | law | statement |
    |---|---|
    | function | a drawn symmetry, scales included, leaves the outputs of the network equal |
    | commute | graph(permuted network) = permuted graph(network) |
    | complete | each trained scalar stands in the graph, tied ones once, or is listed as unused |
    | round trip | network to values to network has the same bits |
    | zero weight | weights of 0 keep every neuron, edge and symmetry |

    Args:
        network: Any module that ``capture`` reads; it is not changed.
        example_inputs: As for ``capture``.
        graph: The graph to check; captured when not given.
        num_seeds: Symmetries drawn for "function" and "commute".
        tolerance: Largest relative change allowed, in float64.
        seed: Of all draws.

    Returns:
        A report with one row per law; ``report.passed`` says whether all hold.

    Raises:
        CaptureError: ``graph`` is not given, and the network cannot be captured.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> report = check_graph(network, torch.randn(4, 3), num_seeds=2)
        >>> report.passed, report.laws
        (True, ('function', 'commute', 'complete', 'round trip', 'zero weight'))
    """
    name = type(network).__name__
    graph = capture(network, example_inputs) if graph is None else graph
    generator = torch.Generator().manual_seed(seed)
    state = other_weights(graph, double_state(network), generator)
    seeds = range(seed, seed + num_seeds)
    rows = (
        _row("function", name, tolerance, lambda: _function(network, graph, example_inputs, seeds)),
        _row("commute", name, tolerance, lambda: _commute(graph, state, seeds)),
        _row("complete", name, 0.0, lambda: _complete(network, graph)),
        _row("round trip", name, 0.0, lambda: _round_trip(graph, double_state(network))),
        _row("zero weight", name, 0.0, lambda: _zero_weight(network, graph, example_inputs)),
    )
    return LawReport(f"graph of {name}", rows)


def _row(
    law: str, network: str, tolerance: float, measure: Callable[[], tuple[float, str]]
) -> LawRow:
    """Measure; a graph so wrong that it cannot be used breaks the law, too."""
    try:
        error, note = measure()
    except (CaptureError, GraphError) as problem:
        error, note = math.nan, str(problem)
    return LawRow(law, network, error, tolerance, note)


def _function(
    network: nn.Module, graph: ParamGraph, inputs: ExampleInputs | list[ExampleInputs], seeds: range
) -> tuple[float, str]:
    """Largest change of the outputs: two draws per seed, the second one with scales."""
    errors = {
        seed: verify(network, graph, inputs, num_draws=2, seed=seed).max_error for seed in seeds
    }
    worst = max(errors, key=lambda seed: _sortable(errors[seed]))
    return errors[worst], f"worst of {len(seeds)} seeds: {worst}"


def _sortable(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _commute(graph: ParamGraph, state: StateDict, seeds: range) -> tuple[float, str]:
    """Largest difference of edges and neurons, relative to the largest entry of each tensor."""
    before = graph.features(state)
    errors = {}
    for seed in seeds:
        symmetry = graph.sample_symmetry(torch.Generator().manual_seed(seed))
        after = graph.features(symmetry.apply(state))
        orders = [symmetry.neuron_order(group) for group in range(len(graph.neuron_groups))]
        for number, block in enumerate(graph.blocks):
            old, new = (values.blocks[number][0] for values in (before, after))
            moved = _reordered(block, old, orders[block.receiver], orders[block.sender])
            errors[seed, block.name] = _difference(moved, new)
        for number, group in enumerate(graph.neuron_groups):
            old, new = before.neurons[number][0], after.neurons[number][0]
            errors[seed, group.name] = _difference(old[orders[number]], new)
    worst = max(errors, key=lambda key: _sortable(errors[key]))
    return errors[worst], f"worst at {worst[1]!r}, seed {worst[0]}"


def _reordered(block: EdgeBlock, values: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
    """The values of a block between reordered neurons, 0 where these have no edge."""
    number = torch.arange(block.num_blocks)[:, None]
    one = receiver[number * block.num_receivers + torch.arange(block.num_receivers)][:, :, None]
    two = sender[number * block.num_senders + torch.arange(block.num_senders)][:, None, :]
    places = (one // block.num_receivers, one % block.num_receivers, two % block.num_senders)
    is_edge = one // block.num_receivers == two // block.num_senders
    return torch.where(is_edge[..., None], values[places], 0)


def _difference(expected: Tensor, got: Tensor) -> float:
    if not expected.numel():
        return 0.0  # a parameter without entries
    return float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-30))


def _complete(network: nn.Module, graph: ParamGraph) -> tuple[float, str]:
    """Number of scalars that are missing, or read more often than their parameter is."""
    numbered: dict[str, Tensor] = {}
    start = 1
    for layout in graph.parameters:
        # Whole numbers below 2^53 are exact in float64.
        entries = torch.arange(start, start + layout.num_entries, dtype=torch.float64)
        set_parameter(numbered, layout, entries.reshape(layout.shape))
        start += layout.num_entries
    values = graph.features(numbered)
    counts = Counter(_entries(graph, values))
    wrong = []
    for layout in graph.parameters:
        whole = get_parameter(numbered, layout)
        for number, part in enumerate(layout.parts):
            entries = take_part(whole, part.steps).reshape(-1)
            times = {counts[int(entry)] for entry in entries}
            # A part is read once per place where it is used, all its entries equally often.
            if times - {_num_views(graph, layout.name, number)}:
                wrong.append(layout.name)
        covered = sum(part_sizes(layout))
        if covered != layout.num_entries:
            wrong.append(layout.name)
    known = {*graph.unused_parameters, *graph.constant_parameters}
    for layout in graph.parameters:
        known.update((layout.name, *layout.aliases, *layout.members))
    wrong += [name for name, _ in network.named_parameters() if name not in known]
    return float(len(wrong)), f"parameters: {', '.join(wrong)}" if wrong else ""


def _num_views(graph: ParamGraph, parameter: str, part: int) -> int:
    features = [feature.view for group in graph.neuron_groups for feature in group.features]
    views = [block.view for block in graph.blocks if block.view is not None] + features
    return sum((view.parameter, view.part) == (parameter, part) for view in views)


def _entries(graph: ParamGraph, values: Values) -> list[int]:
    """All entries of a network, as the graph shows them."""
    found: list[float] = []
    for block, entries in zip(graph.blocks, values.blocks, strict=True):
        if block.view is not None:
            found += entries.reshape(-1).tolist()
    for group, channels in zip(graph.neuron_groups, values.neurons, strict=True):
        for feature in group.features:
            found += channels[..., feature.role.channel].reshape(-1).tolist()
    return [int(entry) for entry in found]


def _round_trip(graph: ParamGraph, state: StateDict) -> tuple[float, str]:
    """Number of parameters whose bits change on the way to values and back."""
    written = graph.write_back(graph.features(state))
    wrong = [name for name, value in written.items() if not torch.equal(value[0], state[name])]
    names = [name for row in graph.parameters for name in row.members or (row.name,)]
    missing = [name for name in names if name not in written]
    wrong += missing
    return float(len(wrong)), f"parameters: {', '.join(wrong)}" if wrong else ""


def _zero_weight(
    network: nn.Module, graph: ParamGraph, inputs: ExampleInputs | list[ExampleInputs]
) -> tuple[float, str]:
    """Whether a network of zeros has another structure."""
    copy = evaluation_copy(network)
    state = copy.state_dict()
    copy.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
    changed = capture(copy, inputs, output=graph.output).signature != graph.signature
    if changed and _operations(network, inputs) != _operations(copy, inputs):
        # A router that ties chooses other experts: another run, not another reading of it.
        return 0.0, "with zeros the network takes another way"
    return float(changed), "the structure changes" if changed else ""


def _operations(
    network: nn.Module, inputs: ExampleInputs | list[ExampleInputs]
) -> list[tuple[object, ...]]:
    """What a run does, and to tensors of which shapes."""
    first = inputs[0] if isinstance(inputs, list) else inputs
    return [
        (entry.operation, entry.module, *_shapes(entry)) for entry in record(network, first).entries
    ]


def _shapes(entry: TapeEntry) -> list[tuple[int, ...]]:
    """Shapes of the results of an operation."""
    return [ref.shape for ref in entry.outputs if ref is not None]
