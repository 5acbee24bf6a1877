"""Sums, products and functions of entries: biases, skips, gains, gates, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paramgraph.capture.activations import token
from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs
from paramgraph.capture.weave.factors import multiply, product
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import along_positions, by_likeness
from paramgraph.capture.weave.operands import (
    Operand,
    Site,
    at_one_site,
    derived,
    plain,
    same_group,
    with_step,
)
from paramgraph.capture.weave.records import (
    Constant,
    Hidden,
    Input,
    Param,
    Reduced,
    Strand,
    identity,
)
from paramgraph.capture.weave.sums import add
from paramgraph.structure import EdgeKind

__all__ = ["elementwise"]


def elementwise(loom: Loom, entry: TapeEntry) -> None:
    """Strands of the results of an operation on entries, broadcast."""
    for ref in entry.outputs:
        if ref is None:
            continue
        parts = loom.partition(ref)
        strands: list[Strand] = []
        known: dict[object, Strand] = {}
        for block in range(len(parts)):
            # The same neurons at other positions give the same neurons.
            operands = (_operand(loom, ref, block, arg)[0] for arg in entry_refs(entry.args))
            key = tuple(map(identity, operands))
            if key not in known:
                known[key] = _one(loom, entry, ref, block)
            strands.append(known[key])
        if len(strands) > 1 and entry.operation == "aten.add" and _was_one(loom, entry):
            strands = along_positions(loom, entry, ref, strands)
        loom.strands[ref.number] = tuple(strands)


def _was_one(loom: Loom, entry: TapeEntry) -> bool:
    """Whether a table of positions is added to the same neurons at all positions."""
    for ref in entry_refs(entry.args):
        strands = loom.strands.get(ref.number, ())
        groups = {id(s.group) if isinstance(s, Hidden) else 0 for s in strands}
        if len(groups) == 1 and 0 not in groups:
            return True
    return False


def _operand(loom: Loom, ref: TensorRef, block: int, arg: TensorRef) -> tuple[Strand, int]:
    """The strand of an argument that a block of the result is made of."""
    parts = loom.partition(arg)
    if len(parts) == 1:
        return loom.strand(arg), 0
    for place in loom.partition(ref).probes(block)[:1]:
        missing = len(place) - len(arg.shape)
        inside = [p if size != 1 else 0 for p, size in zip(place[missing:], arg.shape, strict=True)]
        if found := parts.find(inside):
            return loom.strand(arg, found[0]), found[0]
    number = by_likeness(loom, ref, block, arg)
    return loom.strand(arg, number), number


def _one(loom: Loom, entry: TapeEntry, ref: TensorRef, block: int) -> Strand:
    name, args = entry.operation.removeprefix("aten."), entry.args
    refs = entry_refs(args)
    here = [(arg, *_operand(loom, ref, block, arg)) for arg in refs]
    site = (ref, block)
    two = name in ("add", "sub", "mul", "div", "rsub")
    if two and isinstance(args.get("self"), TensorRef):
        other: Any = args.get("other")
        left = here[0]
        right = here[1] if isinstance(other, TensorRef) else None
        if name in ("add", "sub", "rsub"):
            factor = (1.0 if name == "add" else -1.0) * float(args.get("alpha", 1))
            if name == "rsub":
                if right is None:
                    return _pointwise(loom, entry, site, here)
                left, right = right, left
            return add(loom, entry, site, left, right, factor, other)
        if not args.get("rounding_mode"):
            return multiply(loom, entry, site, left, right, other, divide=name == "div")
    if name in ("_prelu_kernel", "prelu") and isinstance(here[1][1], Param):
        if isinstance(here[0][1], Hidden):
            value = with_step(loom, here[0][1], here[0][0], site, "prelu")
            return multiply(loom, entry, site, (here[0][0], value, here[0][2]), here[1], None)
    return _pointwise(loom, entry, site, here)


def _step(entry: TapeEntry) -> str:
    numbers = [
        float(v)
        for v in entry.args.values()
        if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    name = entry.operation.removeprefix("aten.")
    if name in ("masked_fill", "where"):
        return "mask"
    if not isinstance(next(iter(entry.args.values())), TensorRef):
        name = f"r{name}"  # 2 ** x is not x ** 2
    if name == "gelu" or (name == "elu" and numbers[1:] == [1, 1]):
        numbers = []
    return token(name, numbers)


def _pointwise(loom: Loom, entry: TapeEntry, site: Site, here: Sequence[Operand]) -> Strand:
    telling = [o for o in here if not isinstance(o[1], Constant | Input)]
    if not telling:
        return plain(site, [o[1] for o in here])
    step = _step(entry)
    if all(isinstance(value, Param) for _, value, _ in telling):
        return derived(loom, site, telling, step)
    if len(telling) == 1:
        source, value, _ = telling[0]
        if isinstance(value, Reduced):
            return replace(value, chain=(*value.chain, step))
        assert isinstance(value, Hidden)
        return with_step(loom, value, source, site, step)
    hidden = [value for _, value, _ in telling if isinstance(value, Hidden)]
    if len(hidden) == len(telling) and at_one_site(loom, telling):
        return same_group(entry, hidden[0], hidden)
    return product(loom, entry, site, [o[1] for o in telling], EdgeKind.FLOW)
