"""Sums and extremes over positions or over neurons, and operations on positions."""

from __future__ import annotations

from dataclasses import replace

from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import by_likeness, moved, united
from paramgraph.capture.weave.operands import with_step
from paramgraph.capture.weave.parameters import forgotten
from paramgraph.capture.weave.records import Constant, Hidden, Input, Param, Reduced, Strand

__all__ = ["reduction", "same_neurons"]


def reduction(loom: Loom, entry: TapeEntry) -> None:
    """Sums, means, extremes: over positions the neurons stay, over neurons a statistic is left."""
    source = next(iter(entry_refs(entry.args)))
    name = entry.operation.removeprefix("aten.")
    for ref in entry.outputs:
        if ref is None:
            continue
        parts = loom.partition(ref)
        strands: list[Strand] = []
        for block in range(len(parts)):
            values = _reduced_from(loom, entry, ref, block, source)
            telling = {
                (id(v.group), v.chain) if isinstance(v, Hidden) else id(v): (v, at)
                for v, at in values
                if not isinstance(v, Constant)
            }
            if not telling:
                strands.append(values[0][0] if values else Constant())
                continue
            if len(telling) > 1:
                strands.append(
                    united(loom, entry, ref, block, [value for value, _ in telling.values()])
                )
                continue
            value, at = next(iter(telling.values()))
            strands.append(_reduced(loom, entry, name, (source, at), (ref, block), value))
        loom.strands[ref.number] = tuple(strands)


def _reduced_from(
    loom: Loom, entry: TapeEntry, ref: TensorRef, block: int, source: TensorRef
) -> list[tuple[Strand, int]]:
    parts = loom.partition(source)
    if len(parts) == 1:
        return [(loom.strand(source), 0)]
    rank = len(source.shape)
    dims = entry.args.get("dim")
    dims = (
        list(range(rank))
        if dims is None or dims == []
        else [dims]
        if isinstance(dims, int)
        else dims
    )
    gone = {dim % rank for dim in dims}
    probe = (loom.partition(ref).probes(block) or [()])[0]
    keep = len(probe) == rank
    left = iter(probe)
    place: list[int | None] = []
    for axis in range(rank):
        if axis in gone:
            place.append(None)
            if keep:
                next(left, None)
        else:
            place.append(next(left, None))
    return [(loom.strand(source, at), at) for at in parts.find(place)]


def _reduced(
    loom: Loom,
    entry: TapeEntry,
    name: str,
    source: tuple[TensorRef, int],
    target: tuple[TensorRef, int],
    value: Strand,
) -> Strand:
    ref, block = target
    if isinstance(value, Input):
        return Input(ref.number, ref.shape)
    if isinstance(value, Param):
        return forgotten(value)
    here = loom.present(loom.partition(ref).axes[block])
    if isinstance(value, Reduced):
        return replace(value, chain=(*value.chain, name))
    assert isinstance(value, Hidden)
    kept = all(
        isinstance(f, int) or f.size == 1 or any(f is leaf for leaf in here)
        for f in value.group.factors
    )
    if kept:
        # A later bias or skip may not move in front of a sum or a maximum over positions.
        keeps_bias = name == "mean"
        result = moved(loom, entry, value, source, target)
        assert isinstance(result, Hidden)
        result = result if keeps_bias else replace(result, owned=False)
        is_plain = name in ("mean", "sum", "amax", "amin", "max", "min", "nansum", "nanmean")
        return result if is_plain else replace(result, chain=(*value.chain, name), owned=False)
    return Reduced(value, (name,))


def same_neurons(loom: Loom, entry: TapeEntry, *, keeps_bias: bool, step: str = "") -> None:
    """An operation on positions, or over neurons that stay: softmax, pooling, padding."""
    source = next(iter(entry_refs(entry.args)))
    for ref in entry.outputs:
        if ref is None:
            continue
        strands: list[Strand] = []
        for block in range(len(loom.partition(ref))):
            at = by_likeness(loom, ref, block, source)
            value = loom.strand(source, at)
            if isinstance(value, Hidden) and step:
                value = with_step(loom, value, source, (ref, block), step)
            else:
                value = moved(loom, entry, value, (source, at), (ref, block))
                if isinstance(value, Hidden) and not keeps_bias:
                    value = replace(value, owned=False)
            strands.append(value)
        loom.strands[ref.number] = tuple(strands)
