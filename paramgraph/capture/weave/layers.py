"""Normalisations, reductions, tables and everything that has no rule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paramgraph.capture.activations import token
from paramgraph.capture.tape import ALIASED, TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.factors import product
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import by_likeness, moved, united
from paramgraph.capture.weave.origins import overwritten
from paramgraph.capture.weave.parameters import forgotten, leaves_of
from paramgraph.capture.weave.records import Constant, Hidden, Input, Param, Piece, Strand
from paramgraph.capture.weave.sums import add
from paramgraph.structure import EdgeKind

__all__ = ["gated", "generic", "written"]


def gated(loom: Loom, entry: TapeEntry) -> None:
    """One half of a tensor times the sigmoid of the other half."""
    source, ref = entry_refs(entry.args)[0], entry.outputs[0]
    assert ref is not None
    parts, dim = loom.partition(source), entry.args["dim"] % len(source.shape)
    strands: list[Strand] = []
    for block in range(len(loom.partition(ref))):
        places = loom.partition(ref).probes(block)
        if not places:
            strands.append(Constant())  # an empty tensor
            continue
        place = places[0]
        other = (*place[:dim], place[dim] + ref.shape[dim], *place[dim + 1 :])
        one, two = (loom.strand(source, (parts.find(at) or [0])[0]) for at in (place, other))
        if isinstance(two, Hidden):
            two = replace(two, chain=(*two.chain, "sigmoid"), owned=False)
        strands.append(product(loom, entry, (ref, block), [one, two], EdgeKind.GATE))
    loom.strands[ref.number] = tuple(strands)


def written(loom: Loom, entry: TapeEntry) -> None:
    """A tensor that another one was written into: what was written, and what was there."""
    refs = entry_refs(entry.args)
    ref = entry.outputs[0]
    assert ref is not None
    is_alias = entry.operation == ALIASED
    is_copy = entry.operation == "aten.copy"
    sources = refs[1:2] if is_copy else refs[:2]
    if not is_alias and not is_copy:
        sources = [r for r in refs if r is not entry.args.get("index") and r not in _indices(entry)]
    strands: list[Strand] = []
    for block in range(len(loom.partition(ref))):
        values: dict[object, tuple[TensorRef, int, Strand]] = {}
        if is_alias:
            places = overwritten(loom, ref, block, sources[0], sources[1])
        else:
            places = [(source, by_likeness(loom, ref, block, source)) for source in sources]
        for source, at in places:
            value = loom.strand(source, at)
            if not isinstance(value, Constant):
                key = (id(value.group), value.chain) if isinstance(value, Hidden) else id(value)
                values.setdefault(key, (source, at, value))
        if not values:
            strands.append(Constant())
        elif len(values) == 1:
            source, at, value = next(iter(values.values()))
            here = loom.present(loom.partition(ref).axes[block])
            if isinstance(value, Hidden) and not _all_present(value, here):
                strands.append(united(loom, entry, ref, block, [value]))
                continue
            result = moved(loom, entry, value, (source, at), (ref, block))
            strands.append(replace(result, owned=False) if isinstance(result, Hidden) else result)
        elif "add" in entry.operation and len(values) == 2:
            one, two = values.values()
            strands.append(
                add(loom, entry, (ref, block), (one[0], one[2], one[1]), (two[0], two[2], two[1]))
            )
        else:
            strands.append(united(loom, entry, ref, block, [v for _, _, v in values.values()]))
    loom.strands[ref.number] = tuple(strands)


def _all_present(value: Hidden, here: Sequence[object]) -> bool:
    return all(any(f is leaf for leaf in here) for f in value.group.factors)


def _indices(entry: TapeEntry) -> list[TensorRef]:
    return entry_refs([entry.args.get("indices"), entry.args.get("index"), entry.args.get("mask")])


def generic(loom: Loom, entry: TapeEntry) -> None:
    """Any operation: functions of one group stay in it where its neurons are still told apart."""
    name = entry.operation.removeprefix("aten.")
    refs = entry_refs(entry.args)
    for ref in entry.outputs:
        if ref is None:
            continue
        parts = loom.partition(ref)
        strands: list[Strand] = []
        for block, axes in enumerate(parts.axes):
            values: dict[object, tuple[TensorRef, int, Strand]] = {}
            for source in refs:
                at = by_likeness(loom, ref, block, source)
                value = loom.strand(source, at)
                if isinstance(value, Hidden):
                    values.setdefault((id(value.group), value.chain), (source, at, value))
                elif not isinstance(value, Constant | Input):
                    values.setdefault(id(value), (source, at, value))
            if not values:
                data = any(isinstance(loom.strand(r), Input) for r in refs)
                strands.append(Input(ref.number, ref.shape) if data else Constant())
                continue
            here = loom.present(axes)
            source, at, value = next(iter(values.values()))
            if len(values) == 1 and isinstance(value, Hidden) and _all_present(value, here):
                silent = name in ("index", "embedding", "gather", "index_select", "flip", "roll")
                chain = value.chain if silent else (*value.chain, token(name, []))
                new = Hidden(value.group, chain, owned=False, site=(ref.number, block))
                strands.append(new)
                continue
            if all(isinstance(v, Param) for _, _, v in values.values()) and len(values) == 1:
                assert isinstance(value, Param)
                if not any(isinstance(loom.strand(r), Input) for r in refs):
                    strands.append(forgotten(value))
                    continue
            several = [v for _, _, v in values.values()]
            if len(several) > 1 and all(isinstance(v, Param) for v in several):
                pieces = {
                    (p.parameter, p.part): _fitting(loom, p, axes)
                    for v in several
                    if isinstance(v, Param)
                    for p in v.pieces
                }
                strands.append(Param(tuple(pieces.values())))
                continue
            strands.append(
                product(
                    loom, entry, (ref, block), [v for _, _, v in values.values()], EdgeKind.FLOW
                )
            )
        loom.strands[ref.number] = tuple(strands)


def _fitting(loom: Loom, piece: Piece, axes: Axes) -> Piece:
    """Labels stay where the result has the axes of the part (weight normalisation)."""
    if piece.labels is None:
        return piece
    fit = len(piece.labels) == len(axes) and all(
        len(ls) == len(axis) for ls, axis in zip(piece.labels, axes, strict=True)
    )
    fit = fit and len(leaves_of(loom, piece)) == len(loom.present(axes))
    return piece if fit else replace(piece, labels=None)
