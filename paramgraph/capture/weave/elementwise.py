"""Sums, products and functions of entries: biases, skips, gains, gates, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Leaf, size_of
from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.loom import Loom, same_factors
from paramgraph.capture.weave.movement import along_positions, by_likeness
from paramgraph.capture.weave.parameters import (
    attach,
    forgotten,
    leaves_of,
    main_piece,
    part_axes,
    spread,
    stated,
)
from paramgraph.capture.weave.records import (
    Constant,
    Group,
    Hidden,
    Input,
    Param,
    Piece,
    Reduced,
    Strand,
    identity,
)
from paramgraph.structure import EdgeKind, NeuronRole, NormKind

__all__ = ["add", "add_bias", "elementwise", "fits", "gain", "multiply", "product", "with_step"]

_INVERSES = ("rsqrt", "sqrt", "reciprocal", "pow", "linalg_vector_norm", "norm", "var", "std")


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


Operand = tuple[TensorRef, Strand, int]
Site = tuple[TensorRef, int]


def with_step(loom: Loom, value: Hidden, source: TensorRef, site: Site, step: str) -> Hidden:
    """The same neurons after one more pointwise function."""
    owned = value.owned and loom.uses.get(source.number, 0) <= 1
    same = source.shape == site[0].shape
    place = value.site if same else (site[0].number, site[1])
    return replace(value, chain=(*value.chain, step), owned=owned, site=place)


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
        return _plain(site, [o[1] for o in here])
    step = _step(entry)
    if all(isinstance(value, Param) for _, value, _ in telling):
        return _derived(loom, site, telling, step)
    if len(telling) == 1:
        source, value, _ = telling[0]
        if isinstance(value, Reduced):
            return replace(value, chain=(*value.chain, step))
        assert isinstance(value, Hidden)
        return with_step(loom, value, source, site, step)
    hidden = [o for o in telling if isinstance(o[1], Hidden)]
    if len(hidden) == len(telling) and _at_one_site(loom, hidden):
        return _same_group(entry, hidden[0][1], [o[1] for o in hidden])  # type: ignore[arg-type, list-item]
    return product(loom, entry, site, [o[1] for o in telling], EdgeKind.FLOW)


def _plain(site: Site, values: Sequence[Strand]) -> Strand:
    if any(isinstance(value, Input) for value in values):
        return Input(site[0].number, site[0].shape)
    return Constant()


def _at_one_site(loom: Loom, operands: Sequence[Operand]) -> bool:
    first = operands[0][1]
    return all(
        isinstance(v, Hidden)
        and isinstance(first, Hidden)
        and v.group is first.group
        and v.site == first.site
        and ref.shape == operands[0][0].shape
        for ref, v, _ in operands
    )


def _same_group(entry: TapeEntry, first: Hidden, values: Sequence[Hidden]) -> Hidden:
    """Functions of the same neurons, combined: again a function of these neurons."""
    name = entry.operation.removeprefix("aten.")
    extra = entry.args.get("alpha", 1)
    inside = "|".join(" ".join(value.chain) for value in values)
    step = f"{name}[{inside}]" + ("" if extra == 1 else f"({extra})")
    return Hidden(first.group, (step,), owned=False, site=first.site)


def _derived(loom: Loom, site: Site, operands: Sequence[Operand], step: str) -> Param:
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
                new = [((),) * len(axis) for axis in axes[:missing]]
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


def _number(value: Strand | None, argument: Any) -> float | None:
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


def add(
    loom: Loom,
    entry: TapeEntry,
    site: Site,
    left: Operand,
    right: Operand | None,
    factor: float = 1.0,
    argument: Any = None,
) -> Strand:
    """The sum ``left + factor * right``."""
    a, b = left[1], right[1] if right else None
    for value, swapped in ((left, False), (right, True)):
        if value is None or not isinstance(value[1], Hidden | Reduced):
            continue
        other = a if swapped else b
        constant = _number(other, None if swapped else argument)
        if constant is None and not isinstance(other, Constant):
            continue
        strand = value[1]
        steps = [token("mul", [factor])] if swapped and factor != 1 else []
        if constant is None:
            steps.append("add")
        else:
            steps.append(token("add", [constant if swapped else constant * factor]))
        if isinstance(strand, Reduced):
            return replace(strand, chain=(*strand.chain, *steps))
        for step in steps:
            strand = with_step(loom, strand, value[0], site, step)
        return strand
    assert right is not None or isinstance(a, Param | Input | Constant)
    if right is None or isinstance(b, Constant):
        if isinstance(a, Param):
            return _derived(loom, site, [left], "add")
        return _plain(site, [a])
    if isinstance(a, Constant):
        return (
            _derived(loom, site, [right], "add") if isinstance(b, Param) else _plain(site, [a, b])
        )
    if isinstance(a, Param) and isinstance(b, Param):
        if a.is_spread == b.is_spread:
            return _derived(loom, site, [left, right], "add")
    if isinstance(a, Input) and isinstance(b, Input):
        return _plain(site, [a, b])
    if isinstance(a, Hidden) and isinstance(b, Param):
        return _add_parameter(loom, entry, site, left, right, factor)
    if isinstance(b, Hidden) and isinstance(a, Param):
        if factor != 1:
            right = (right[0], with_step(loom, b, right[0], site, token("mul", [factor])), right[2])
        return _add_parameter(loom, entry, site, right, left, 1.0)
    if isinstance(a, Hidden) and isinstance(b, Hidden) and _at_one_site(loom, [left, right]):
        return _same_group(entry, a, [a, b])
    for value, other in ((a, b), (b, a)):
        if isinstance(value, Hidden) and isinstance(other, Reduced):
            if other.source.group is value.group:
                # What a normalisation subtracts: the mean of the neurons themselves.
                return replace(value, chain=(*value.chain, "centre"), owned=False)
    return _join(loom, entry, site, left, right, factor)


def fits(
    loom: Loom, group: Group, value: Param, axes: Axes, *, fixed: bool = False
) -> tuple[Piece, list[int]] | None:
    """A parameter with exactly one value per neuron: its piece, and the axes in their order."""
    if len(value.pieces) != 1 or value.chain:
        return None
    return fits_piece(loom, group, value.pieces[0], fixed=fixed)


def fits_piece(
    loom: Loom, group: Group, piece: Piece, *, fixed: bool = False
) -> tuple[Piece, list[int]] | None:
    """A part with exactly one value per neuron of a group.

    With ``fixed``, any axis that cannot be permuted numbers neurons that cannot be, if it is as
    long: what meets positions is not known to be the same axis as another one that does.
    """
    factors = part_axes(loom, piece)
    left = [i for i, f in enumerate(factors) if size_of(f) != 1]  # type: ignore[arg-type]
    ones = [i for i, f in enumerate(factors) if size_of(f) == 1]  # type: ignore[arg-type]
    order = []
    for factor in group.factors:
        if size_of(factor) == 1:
            continue
        match = next((i for i in left if loom.leaf(factors[i]) is factor), None)  # type: ignore[arg-type]
        if match is None and fixed and not (isinstance(factor, Leaf) and loom.is_free(factor)):
            match = next((i for i in left if size_of(factors[i]) == size_of(factor)), None)  # type: ignore[arg-type]
        if match is None:
            return None
        left.remove(match)
        order.append(match)
    if left or piece.labels is None:
        return None
    return piece, [*order, *ones]


def add_bias(loom: Loom, group: Group, value: Param, axes: Axes, *, fixed: bool = False) -> bool:
    """Make a parameter the bias of a group; whether that was possible."""
    found = fits(loom, group, value, axes, fixed=fixed)
    if found is None or NeuronRole.BIAS in group.features:
        return False
    loom.feature(NeuronRole.BIAS, group, *found)
    return True


def _add_parameter(
    loom: Loom, entry: TapeEntry, site: Site, left: Operand, right: Operand, factor: float
) -> Hidden:
    value, parameter = left[1], right[1]
    assert isinstance(value, Hidden)
    assert isinstance(parameter, Param)
    axes = loom.partition(site[0]).axes[site[1]]
    place = (site[0].number, site[1])
    if factor == 1 and fits(loom, value.group, parameter, axes) is not None:
        if is_owned(loom, value, left[0]) and add_bias(loom, value.group, parameter, axes):
            return Hidden(value.group, value.chain, site=place)
        piece = parameter.pieces[0]
        group = loom.new_group(entry, value.group.factors, piece.parameter, origin=place)
        loom.skip(loom.read(value), group)
        add_bias(loom, group, parameter, axes)
        return Hidden(group, site=place)
    return _join(loom, entry, site, left, right, factor)


def _join(
    loom: Loom, entry: TapeEntry, site: Site, left: Operand, right: Operand, factor: float
) -> Hidden:
    """A residual addition: a skip into the group that nobody else reads."""
    axes = loom.partition(site[0]).axes[site[1]]
    place = (site[0].number, site[1])
    a, b = left[1], right[1]
    known = [f for v in (a, b) if isinstance(v, Hidden) for f in v.group.factors]
    known += [f for v in (a, b) if isinstance(v, Reduced) for f in v.source.group.factors]
    for value in (a, b):
        if isinstance(value, Param):
            known += [
                leaf for p in value.pieces for leaf in leaves_of(loom, p) if loom.is_free(leaf)
            ]
    neurons = loom.neurons_in(axes, known)
    for operand in (left, right):
        # Inputs that are the same for all neurons (a mask) only say where, not what.
        if isinstance(operand[1], Input) and not _has_neurons(loom, operand, axes, neurons):
            kept = right if operand is left else left
            if isinstance(kept[1], Hidden):
                return with_step(loom, kept[1], kept[0], site, "add")
    if isinstance(a, Param):
        a = loom.hidden(a, neurons, entry)
    if isinstance(b, Param):
        b = loom.hidden(b, neurons, entry)
    if isinstance(a, Reduced):
        a = loom.hidden(a, neurons, entry)
    if isinstance(b, Reduced):
        b = loom.hidden(b, neurons, entry)
    left, right = (left[0], a, left[2]), (right[0], b, right[2])
    target = None
    links = [(left, 1.0), (right, factor)]
    if is_owned(loom, a, left[0]) and isinstance(a, Hidden) and _numbers(a.group, neurons):
        target, links = a.group, [(right, factor)]
    elif factor == 1 and is_owned(loom, b, right[0]) and isinstance(b, Hidden):
        if _numbers(b.group, neurons):
            target, links = b.group, [(left, 1.0)]
    if target is None:
        target = loom.new_group(entry, neurons, origin=place)
    for operand, constant in links:
        sender = (
            loom.read_as(operand[1], neurons, entry, _axis_of(loom, operand, axes, neurons))
            if isinstance(operand[1], Input)
            else loom.read(operand[1])
        )  # type: ignore[arg-type]
        if sender is target:
            continue
        if sender.size == target.size and (
            isinstance(operand[1], Input) or _numbers(sender, neurons)
        ):
            loom.skip(sender, target, constant)
        else:
            loom.flow(sender, target)
    return Hidden(target, site=place)


def _numbers(group: Group, neurons: Sequence[Leaf]) -> bool:
    return same_factors(group.factors, neurons)


def _last_axis(loom: Loom, axes: Axes, neurons: Sequence[Leaf]) -> int:
    """The last axis on which neurons stand, from the end."""
    for back in range(1, len(axes) + 1):
        if any(loom.leaf(f) is leaf for f in axes[-back] for leaf in neurons):
            return -back
    return -1


def _has_neurons(loom: Loom, operand: Operand, axes: Axes, neurons: Sequence[Leaf]) -> bool:
    place, shape = _last_axis(loom, axes, neurons), operand[0].shape
    return (len(shape) >= -place and shape[place] > 1) or all(leaf.size == 1 for leaf in neurons)


def _axis_of(
    loom: Loom, operand: Operand, axes: Axes, neurons: Sequence[Leaf]
) -> tuple[int, int, int] | None:
    place, shape = _last_axis(loom, axes, neurons), operand[0].shape
    if len(shape) < -place:
        return None
    return (len(shape) + place, 0, shape[place])


def multiply(
    loom: Loom,
    entry: TapeEntry,
    site: Site,
    left: Operand,
    right: Operand | None,
    argument: Any,
    *,
    divide: bool = False,
) -> Strand:
    """The product or quotient of two values."""
    a, b = left[1], right[1] if right else None
    for value, other, swapped in ((left, b, False), (right, a, True)):
        if value is None or not isinstance(value[1], Hidden | Reduced):
            continue
        constant = _number(other, None if swapped else argument)
        if constant is None and not isinstance(other, Constant | Input):
            continue
        if isinstance(other, Input) and not swapped | divide:
            axes = loom.partition(site[0]).axes[site[1]]
            neurons = value[1].group.factors if isinstance(value[1], Hidden) else ()
            operand = right if not swapped else left
            assert operand is not None
            if _has_neurons(loom, operand, axes, [f for f in neurons if isinstance(f, Leaf)]):
                continue
        if swapped and divide:
            step = token("rdiv", [constant] if constant is not None else [])
        elif constant is None or (divide and constant == 0):
            step = "mul"
        else:
            step = token("mul", [1 / constant if divide else constant])
        if isinstance(value[1], Reduced):
            return replace(value[1], chain=(*value[1].chain, step))
        return with_step(loom, value[1], value[0], site, step)
    if right is None or (
        isinstance(b, Constant | Input) and isinstance(a, Param | Constant | Input)
    ):
        if isinstance(a, Param) and not isinstance(b, Input):
            return _derived(loom, site, [left], "mul")
        if isinstance(a, Param) and right is not None:
            return product(loom, entry, site, [a, right[1]], EdgeKind.GATE)
        return _plain(site, [a])
    if isinstance(a, Constant | Input) and isinstance(b, Param):
        if isinstance(a, Constant):
            return _derived(loom, site, [right], "mul")
        return product(loom, entry, site, [a, b], EdgeKind.GATE)
    if isinstance(a, Param) and isinstance(b, Param):
        return _derived(loom, site, [left, right], "mul")
    assert b is not None
    if isinstance(a, Hidden) and isinstance(b, Hidden) and _at_one_site(loom, [left, right]):
        return _same_group(entry, a, [a, b])
    for value, statistic in ((a, b), (b, a)):
        if isinstance(value, Hidden) and isinstance(statistic, Reduced):
            if statistic.source.group is value.group and _is_norm(statistic, divide=divide):
                kind = NormKind.LAYER if "centre" in value.chain else NormKind.RMS
                return _normalised(loom, entry, site, value, kind)
    if not divide or isinstance(b, Param):
        for value, parameter in ((left, b), (right, a)):
            if isinstance(value[1], Hidden) and isinstance(parameter, Param):
                found = gain(loom, entry, site, value, parameter)
                if found is not None:
                    return found
    return product(loom, entry, site, [a, b], EdgeKind.GATE)


def _is_norm(value: Reduced, *, divide: bool) -> bool:
    stems = [step.partition("(")[0] for step in (*value.source.chain, *value.chain)]
    return divide or any(stem in _INVERSES for stem in stems)


def _normalised(loom: Loom, entry: TapeEntry, site: Site, value: Hidden, kind: NormKind) -> Hidden:
    """Neurons divided by a statistic of themselves; a gain that follows takes the place of 1."""
    plain = replace(value, chain=tuple(step for step in value.chain if step != "centre"))
    sender = loom.read(plain)
    place = (site[0].number, site[1])
    group = loom.new_group(entry, value.group.factors, origin=place)
    group.norm = kind
    from paramgraph.capture.weave.records import Link

    name = f"{sender.name}->{group.name}"
    loom.links.append(Link(name, EdgeKind.SCALE, sender, group, (group.size, 1, 1)))
    return Hidden(group, site=place)


def gain(
    loom: Loom,
    entry: TapeEntry,
    site: Site,
    operand: Operand,
    parameter: Param,
    norm: NormKind = NormKind.NONE,
) -> Hidden | None:
    """Neurons times a parameter: one edge per neuron, or several where the parameter has more."""
    source, value, _ = operand
    assert isinstance(value, Hidden)
    axes = loom.partition(site[0]).axes[site[1]]
    place = (site[0].number, site[1])
    if is_owned(loom, value, source) and value.group.norm is not NormKind.NONE:
        fit = fits(loom, value.group, parameter, axes)
        links = [link for link in loom.links if link.receiver is value.group]
        if fit and len(links) == 1 and links[0].view is None and not value.group.features:
            _fill(loom, links[0], *fit)
            return replace(value, site=place)
    piece = (
        main_piece(loom, parameter, ()) if len(parameter.pieces) == 1 else _widest(loom, parameter)
    )
    if piece is None or piece.labels is None or not stated(loom, piece):
        return None
    if (piece.parameter, piece.part) in loom.claimed and parameter.chain:
        return None
    factors = part_axes(loom, piece)
    known = [f for f in value.group.factors if isinstance(f, Leaf)]
    shared, extra, rest = [], [], []
    for i, factor in enumerate(factors):
        leaf = loom.leaf(factor)  # type: ignore[arg-type]
        if leaf is not None and any(leaf is f for f in known):
            shared.append((i, leaf))
        elif leaf is not None and loom.is_free(leaf):
            extra.append((i, leaf))
        else:
            rest.append(i)
    if not shared:
        return None
    from paramgraph.capture.weave.parameters import grid

    one, two = (_in_order(loom, some) for some in (shared, extra))
    wanted = tuple(leaf for _, leaf in one)
    sender = loom.read_as(value, wanted, entry)
    numbers = (*wanted, *(leaf for _, leaf in two))
    group = loom.new_group(entry, numbers, piece.parameter, origin=place)
    group.norm = norm
    receivers = group.size // sender.size
    sizes = [size_of(factors[i]) for i in rest if size_of(factors[i]) != 1]  # type: ignore[arg-type]
    order = [*(i for i, _ in one), *(i for i, _ in two), *rest]
    loom.block(
        piece.parameter,
        piece.part,
        EdgeKind.SCALE,
        (sender, group),
        order,
        (sender.size, receivers, 1),
        grid(sizes),
    )
    for other in parameter.pieces:
        if other is not piece:
            attach(loom, other, sender, group, entry)
    return Hidden(group, site=place)


def _widest(loom: Loom, parameter: Param) -> Piece:
    return max(parameter.pieces, key=lambda p: (p.labels is not None, len(leaves_of(loom, p))))


def _in_order(loom: Loom, some: list[tuple[int, Leaf]]) -> list[tuple[int, Leaf]]:
    ranks = {id(leaf): n for n, leaf in enumerate(loom.ordered(leaf for _, leaf in some))}
    return sorted(some, key=lambda item: ranks[id(item[1])])


def _fill(loom: Loom, link: Any, piece: Piece, order: Sequence[int]) -> None:
    from paramgraph.structure import EntryView

    loom.claimed.add((piece.parameter, piece.part))
    link.view = EntryView(piece.parameter, piece.part, tuple(order), (link.shape[0], 1, 1, 1))
    link.name = loom.part_name(piece.parameter, piece.part)
    stem = piece.parameter.rpartition(".")[0]
    if stem and not link.receiver.name.startswith(stem):
        link.receiver.name = loom.unique(stem)


def product(
    loom: Loom,
    entry: TapeEntry,
    site: Site,
    values: Sequence[Strand],
    kind: EdgeKind,
    kinds: Sequence[EdgeKind] = (),
) -> Hidden:
    """A new group that depends on all given values."""
    axes = loom.partition(site[0]).axes[site[1]]
    place = (site[0].number, site[1])
    known: list[Any] = []
    for value in values:
        if isinstance(value, Hidden):
            known += value.group.factors
        elif isinstance(value, Reduced):
            known += value.source.group.factors
        elif isinstance(value, Param):
            pieces = [leaf for p in value.pieces for leaf in leaves_of(loom, p)]
            known += [leaf for leaf in pieces if loom.is_free(leaf)] or pieces
    neurons = loom.neurons_in(axes, known)
    senders: list[Group] = []
    for value in values:
        if isinstance(value, Constant):
            continue
        if isinstance(value, Input):
            if len(value.shape) > 1:
                senders.append(loom.read_input(value, -1))
            continue
        senders.append(loom.read(loom.hidden(value, neurons, entry)))
    several = kinds or [kind] * len(senders)
    key = (entry.operation, entry.module, *map(id, senders), *several, *map(id, neurons))
    if key not in loom.made:
        group = loom.made[key] = loom.new_group(entry, neurons, origin=place)
        for sender, how in zip(senders, several, strict=False):
            loom.flow(sender, group, how)
    # The same product of the same neurons is the same group, wherever on the tape it is made; so
    # nothing may be added to it.
    return Hidden(loom.made[key], owned=False, site=place)


__all__ += ["Operand", "Site", "fits_piece", "forgotten", "is_owned"]
