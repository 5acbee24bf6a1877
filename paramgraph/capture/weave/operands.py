"""One operand of an operation on entries: whether it can be joined, and functions of it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.parameters import spread, stated
from paramgraph.capture.weave.records import Constant, Hidden, Input, Param, Piece, Strand

__all__ = [
    "Operand",
    "Site",
    "at_one_site",
    "derived",
    "is_owned",
    "number_of",
    "plain",
    "same_group",
    "with_step",
]


Operand = tuple[TensorRef, Strand, int]

Site = tuple[TensorRef, int]


def with_step(loom: Loom, value: Hidden, source: TensorRef, site: Site, step: str) -> Hidden:
    """The same neurons after one more pointwise function."""
    owned = value.owned and loom.uses.get(source.number, 0) <= 1
    same = source.shape == site[0].shape
    place = value.site if same else (site[0].number, site[1])
    return replace(value, chain=(*value.chain, step), owned=owned, site=place)


def plain(site: Site, values: Sequence[Strand]) -> Strand:
    """The result of an operation that reads no neurons and no parameters."""
    if any(isinstance(value, Input) for value in values):
        return Input(site[0].number, site[0].shape)
    return Constant()


def at_one_site(loom: Loom, operands: Sequence[Operand]) -> bool:
    """Whether all are functions of the same neurons at the same positions."""
    first = operands[0][1]
    return all(
        isinstance(v, Hidden)
        and isinstance(first, Hidden)
        and v.group is first.group
        and v.site == first.site
        and ref.shape == operands[0][0].shape
        for ref, v, _ in operands
    )


def same_group(entry: TapeEntry, first: Hidden, values: Sequence[Hidden]) -> Hidden:
    """Functions of the same neurons, combined: again a function of these neurons."""
    name = entry.operation.removeprefix("aten.")
    extra = entry.args.get("alpha", 1)
    inside = "|".join(" ".join(value.chain) for value in values)
    step = f"{name}[{inside}]" + ("" if extra == 1 else f"({extra})")
    return Hidden(first.group, (step,), owned=False, site=first.site)


def derived(loom: Loom, site: Site, operands: Sequence[Operand], step: str) -> Param:
    """Parameters combined with each other and with constants."""
    axes = loom.partition(site[0]).axes[site[1]]
    pieces: dict[tuple[str, int], Piece] = {}
    chain = operands[0][1].chain if isinstance(operands[0][1], Param) else ()
    is_spread = False
    for source, value, block in operands:
        assert isinstance(value, Param)
        before = loom.partition(source).axes[block]
        for piece in value.pieces:
            labels = piece.labels
            if labels is not None:
                missing = len(axes) - len(before)
                new: list[tuple[tuple[int, ...], ...]] = [((),) * len(a) for a in axes[:missing]]
                for place, axis in enumerate(axes[missing:]):
                    fit = len(labels[place]) == len(axis)
                    new.append(labels[place] if fit else ((),) * len(axis))
                labels = tuple(new)
            piece = replace(piece, labels=labels)
            if not stated(loom, piece):
                piece = replace(piece, labels=None)
            is_spread |= spread(axes, piece.labels) and value.is_spread
            pieces.setdefault((piece.parameter, piece.part), piece)
    return Param(tuple(pieces.values()), (*chain, step) if len(operands) == 1 else (), is_spread)


def number_of(value: Strand | None, argument: Any) -> float | None:
    """The number that a value is everywhere, if it is one."""
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return float(argument)
    return value.value if isinstance(value, Constant) else None


def is_owned(loom: Loom, value: Strand, source: TensorRef) -> bool:
    """Whether a bias or skip can join the group of a value without changing other readers."""
    return (
        isinstance(value, Hidden)
        and value.owned
        and value.chain == ()
        and value.group.chain is None
        and loom.uses.get(source.number, 0) <= 1
    )
