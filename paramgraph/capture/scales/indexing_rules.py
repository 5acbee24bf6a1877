"""Scale rules for reading and writing at indices.

Entries come from anywhere along an axis, so all that stands along it must scale alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paramgraph.capture.axis_rules.registry import operand, output
from paramgraph.capture.scales.boxes import Layout, MisfitError, row_major
from paramgraph.capture.scales.flow import Flow, Scaled, Values
from paramgraph.capture.scales.registry import scale_rule
from paramgraph.capture.tape import TapeEntry, TensorRef

__all__: list[str] = []

_MASKS = (torch.bool, torch.uint8)


def _spread(
    flow: Flow, entry: TapeEntry, source: Scaled, layout: Layout, places: Sequence[int | None]
) -> Values:
    """Bring a tensor into the shape of another one, in any order along some axes.

    Args:
        flow: The reading.
        entry: The operation.
        source: The tensor.
        layout: Blocks of the result.
        places: For each axis of the source the axis of the result, ``None`` where it is indexed.
    """
    strides = row_major(layout.shape)
    kept = [place for place in places if place is not None]
    shape = [layout.shape[place] for place in kept]
    # First without the indexed axes of the result: what stands along them has no order.
    key = ("spread", entry.position, tuple(places), layout.shape)
    middle = flow.geometry.made(key, lambda: layout.along(kept))
    steps = iter(row_major(shape))
    writing = [0 if place is None else next(steps) for place in places]
    if any(
        place is not None and size > layout.shape[place]
        for place, size in zip(places, source.layout.shape, strict=True)
    ):
        raise MisfitError
    inner = Scaled(middle, flow.write(source, middle, writing))
    back = dict(zip(kept, row_major(shape), strict=True))
    return flow.read(inner, layout, [back.get(axis, 0) for axis in range(len(strides))])


@scale_rule("embedding", "index_select")
def _rows(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, index = operand(entry, "weight", "self"), operand(entry, "indices", "index")
    flow.forbid(flow.of(index).values)
    dim = entry.args.get("dim", 0) % max(len(ref.shape), 1)
    more = len(index.shape) - 1 if entry.operation == "aten.embedding" else 0
    places = [a if a < dim else None if a == dim else a + more for a in range(len(ref.shape))]
    return [_spread(flow, entry, flow.of(ref), flow.layout(output(entry)), places)]


@scale_rule("gather", "take_along_dim")
def _gather(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, index = operand(entry, "self"), operand(entry, "index", "indices")
    flow.forbid(flow.of(index).values)
    dim = entry.args["dim"] % max(len(ref.shape), 1)
    out = output(entry)
    places = [
        None if axis == dim or ref.shape[axis] != out.shape[axis] else axis
        for axis in range(len(ref.shape))
    ]
    return [_spread(flow, entry, flow.of(ref), flow.layout(out), places)]


@scale_rule("scatter", "scatter_add", "index_add", "index_copy", "index_fill")
def _scatter(flow: Flow, entry: TapeEntry) -> list[Values]:
    """What is written in scales like what stays; nothing stays of zeros."""
    ref, out = operand(entry, "self"), output(entry)
    layout = flow.layout(out)
    flow.forbid(flow.argument(entry, "index").values)
    dim = entry.args["dim"] % max(len(ref.shape), 1)
    found = [flow.onto(flow.of(ref), layout)]
    if entry.args.get("reduce") is not None:
        raise MisfitError
    for name in ("src", "source", "value"):
        source = entry.args.get(name)
        if isinstance(source, TensorRef) and source.shape:
            places = [
                None if axis == dim or source.shape[axis] != out.shape[axis] else axis
                for axis in range(len(source.shape))
            ]
            found.append(_spread(flow, entry, flow.of(source), layout, places))
        elif isinstance(source, TensorRef):
            found.append(flow.onto(flow.of(source), layout))
        elif isinstance(source, int | float) and source != 0:
            found.append(flow.none(layout))
    return [flow.equal(*found)]


def _indexed(flow: Flow, entry: TapeEntry, rank: int) -> tuple[list[int], list[int], int]:
    """Indexed axes, the axes of the result that stand for the others, and how many are new."""
    dims: list[int] = []
    given: list[int] = []
    ranks: list[int] = []
    axis = 0
    for number, index in enumerate(entry.args["indices"]):
        if not isinstance(index, TensorRef):
            axis += 1
            continue
        flow.forbid(flow.of(index).values)
        is_mask = flow.run.tape.dtypes[index.number] in _MASKS
        width = len(index.shape) if is_mask else 1
        dims += range(axis, axis + width)
        ranks.append(1 if is_mask else len(index.shape))
        given.append(number)
        axis += width
    rest = [axis for axis in range(rank) if axis not in dims]
    # Indexed axes that are not neighbours come first in the result.
    is_together = given == list(range(given[0], given[0] + len(given)))
    first = sum(axis < dims[0] for axis in rest) if is_together else 0
    new = max(ranks)
    return rest, [place if place < first else place + new for place in range(len(rest))], new


@scale_rule("index")
def _index(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, layout = operand(entry, "self"), flow.layout(output(entry))
    rest, targets, _ = _indexed(flow, entry, len(ref.shape))
    where = dict(zip(rest, targets, strict=True))
    places = [where.get(axis) for axis in range(len(ref.shape))]
    return [_spread(flow, entry, flow.of(ref), layout, places)]


@scale_rule("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, layout = operand(entry, "self"), flow.layout(output(entry))
    rest, targets, new = _indexed(flow, entry, len(ref.shape))
    values = operand(entry, "values")
    rank = len(rest) + new
    missing = rank - len(values.shape)
    if missing < 0:
        raise MisfitError
    axis_of = dict(zip(targets, rest, strict=True))
    places = [
        None if size == 1 else axis_of.get(missing + axis) for axis, size in enumerate(values.shape)
    ]
    written = _spread(flow, entry, flow.of(values), layout, places)
    return [flow.equal(flow.onto(flow.of(ref), layout), written)]


@scale_rule("masked_scatter")
def _masked_scatter(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, source = operand(entry, "self"), operand(entry, "source")
    flow.forbid(flow.argument(entry, "mask").values)
    layout = flow.layout(output(entry))
    last = len(ref.shape) - 1
    fits = source.shape[-1:] == ref.shape[-1:]
    places = [None] * (len(source.shape) - 1) + [last if fits else None]
    written = _spread(flow, entry, flow.of(source), layout, places)
    return [flow.equal(flow.onto(flow.of(ref), layout), written)]
