"""Products of entries: gains, gates, normalisations written by hand, and anything that mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Leaf, size_of
from paramgraph.capture.tape import TapeEntry
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.operands import (
    Operand,
    Site,
    at_one_site,
    derived,
    is_owned,
    number_of,
    plain,
    same_group,
    with_step,
)
from paramgraph.capture.weave.parameters import (
    attach,
    grid,
    leaves_of,
    main_piece,
    part_axes,
    stated,
)
from paramgraph.capture.weave.reading import as_hidden, read_as
from paramgraph.capture.weave.records import (
    Constant,
    Group,
    Hidden,
    Input,
    Link,
    Param,
    Piece,
    Reduced,
    Strand,
)
from paramgraph.capture.weave.sums import fits, has_neurons
from paramgraph.structure import EdgeKind, EntryView, NormKind

__all__ = ["gain", "multiply", "product"]


_INVERSES = ("rsqrt", "sqrt", "reciprocal", "pow", "linalg_vector_norm", "norm", "var", "std")


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
        constant = number_of(other, None if swapped else argument)
        if constant is None and not isinstance(other, Constant | Input):
            continue
        if constant == 0 and not divide:
            return Constant(0.0)  # a gate on the zeros that a recurrence starts from
        if isinstance(other, Input) and not swapped | divide:
            axes = loom.partition(site[0]).axes[site[1]]
            neurons = value[1].group.factors if isinstance(value[1], Hidden) else ()
            operand = right if not swapped else left
            assert operand is not None
            if has_neurons(loom, operand, axes, [f for f in neurons if isinstance(f, Leaf)]):
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
            return derived(loom, site, [left], "mul")
        if isinstance(a, Param) and right is not None:
            return product(loom, entry, site, [a, right[1]], EdgeKind.GATE)
        return plain(site, [a])
    if isinstance(a, Constant | Input) and isinstance(b, Param):
        if isinstance(a, Constant):
            return derived(loom, site, [right], "mul")
        return product(loom, entry, site, [a, b], EdgeKind.GATE)
    if isinstance(a, Param) and isinstance(b, Param):
        return derived(loom, site, [left, right], "mul")
    assert b is not None
    if isinstance(a, Hidden) and isinstance(b, Hidden) and at_one_site(loom, [left, right]):
        return same_group(entry, a, [a, b])
    for strand, statistic in ((a, b), (b, a)):
        if isinstance(strand, Hidden) and isinstance(statistic, Reduced):
            if statistic.source.group is strand.group and _is_norm(statistic, divide=divide):
                kind = NormKind.LAYER if "centre" in strand.chain else NormKind.RMS
                return _normalised(loom, entry, site, strand, kind)
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
            value.group.origin = place  # what readers see scales with the gain
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
        leaf = loom.leaf(factor)
        if leaf is not None and any(leaf is f for f in known):
            shared.append((i, leaf))
        elif leaf is not None and loom.is_free(leaf):
            extra.append((i, leaf))
        else:
            rest.append(i)
    if not shared:
        return None
    one, two = (_in_order(loom, some) for some in (shared, extra))
    wanted = tuple(leaf for _, leaf in one)
    sender = read_as(loom, value, wanted, entry)
    numbers = (*wanted, *(leaf for _, leaf in two))
    group = loom.new_group(entry, numbers, piece.parameter, origin=place)
    group.norm = norm
    receivers = group.size // sender.size
    sizes = [size_of(factors[i]) for i in rest if size_of(factors[i]) != 1]
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
        senders.append(loom.read(as_hidden(loom, value, neurons, entry)))
    several = kinds or [kind] * len(senders)
    key = (entry.operation, entry.module, *map(id, senders), *several, *map(id, neurons))
    if key not in loom.made:
        group = loom.made[key] = loom.new_group(entry, neurons, origin=place)
        for sender, how in zip(senders, several, strict=False):
            loom.flow(sender, group, how)
    # The same product of the same neurons is the same group, wherever on the tape it is made; so
    # nothing may be added to it.
    return Hidden(loom.made[key], owned=False, site=place)
