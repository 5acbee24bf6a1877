"""Rows of tables that are chosen by an index."""

from __future__ import annotations

from dataclasses import replace

from paramgraph.capture.axes import Leaf
from paramgraph.capture.tape import TapeEntry, entry_refs
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.layers import generic
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.parameters import forgotten, leaves_of, stated, table
from paramgraph.capture.weave.records import Hidden, Param, Strand

__all__ = ["table_lookup"]


def table_lookup(loom: Loom, entry: TapeEntry) -> None:
    """Rows of a table, chosen by the inputs: an embedding; by a router: parameters still."""
    refs = entry_refs(entry.args)
    source, ref = refs[0], entry.outputs[0]
    assert ref is not None
    parts = loom.partition(source)
    chosen = [loom.strand(r) for r in refs[1:]]
    if len(parts) > 1 or not isinstance(loom.strand(source), Param):
        return generic(loom, entry)
    value = loom.strand(source)
    assert isinstance(value, Param)
    strands: list[Strand] = []
    for block, axes in enumerate(loom.partition(ref).axes):
        piece = value.pieces[0]
        if any(isinstance(v, Hidden) for v in chosen):
            strands.append(_picked(loom, value, parts.axes[0], axes))
            continue
        if len(value.pieces) > 1 or piece.labels is None or not stated(loom, piece):
            strands.append(forgotten(value))
            continue
        # A row that the inputs choose is no neuron of what is looked up, only a choice.
        here = [f for axis in axes for f in axis if isinstance(f, Leaf) and loom.leaf(f) is f]
        rows = [leaf for leaf in leaves_of(loom, piece) if all(leaf is not f for f in here)]
        if not rows:
            strands.append(forgotten(value))
            continue
        key = ("rows", piece.parameter, piece.part, *map(id, rows))
        if key not in loom.adapters:
            loom.adapters[key] = table(loom, piece, here, entry, rows)
            loom.adapters[key].origin = (ref.number, block)
        strands.append(
            Hidden(loom.adapters[key], value.chain, owned=False, site=(ref.number, block))
        )
    loom.strands[ref.number] = tuple(strands)


def _picked(loom: Loom, value: Param, before: Axes, after: Axes) -> Param:
    """A parameter some of whose indices were chosen: the choice stands for the axis."""
    pieces = []
    for piece in value.pieces:
        labels = None
        if piece.labels is not None:
            known = [
                (loom.leaf(f), f, label)
                for axis, ls in zip(before, piece.labels, strict=True)
                for f, label in zip(axis, ls, strict=True)
                if label
            ]
            new = []
            for axis in after:
                row = []
                for factor in axis:
                    match = next(
                        (
                            k
                            for k in known
                            if k[1] is factor or (k[0] is not None and k[0] is loom.leaf(factor))
                        ),
                        None,
                    )
                    if match is not None:
                        known.remove(match)
                    row.append(match[2] if match is not None else ())
                new.append(tuple(row))
            labels = tuple(new)
        pieces.append(replace(piece, labels=labels))
    return replace(value, pieces=tuple(pieces), is_spread=False)
