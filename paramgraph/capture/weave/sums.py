"""Sums of entries: biases, skips, constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Leaf, size_of
from paramgraph.capture.tape import TapeEntry
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.numbering import same_factors
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
from paramgraph.capture.weave.parameters import leaves_of, part_axes
from paramgraph.capture.weave.reading import as_hidden, read_as
from paramgraph.capture.weave.records import (
    Constant,
    Group,
    Hidden,
    Input,
    Param,
    Piece,
    Reduced,
    Strand,
)
from paramgraph.structure import NeuronRole

__all__ = ["add", "add_bias", "fits", "fits_piece", "has_neurons"]


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
        constant = number_of(other, None if swapped else argument)
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
            return derived(loom, site, [left], "add")
        return plain(site, [a])
    assert b is not None
    if isinstance(a, Constant):
        return derived(loom, site, [right], "add") if isinstance(b, Param) else plain(site, [a, b])
    if isinstance(a, Param) and isinstance(b, Param):
        if a.is_spread == b.is_spread:
            return derived(loom, site, [left, right], "add")
    if isinstance(a, Input) and isinstance(b, Input):
        return plain(site, [a, b])
    if isinstance(a, Hidden) and isinstance(b, Param):
        return _add_parameter(loom, entry, site, left, right, factor)
    if isinstance(b, Hidden) and isinstance(a, Param):
        if factor != 1:
            right = (right[0], with_step(loom, b, right[0], site, token("mul", [factor])), right[2])
        return _add_parameter(loom, entry, site, right, left, 1.0)
    if isinstance(a, Hidden) and isinstance(b, Hidden) and at_one_site(loom, [left, right]):
        return same_group(entry, a, [a, b])
    for one, two in ((a, b), (b, a)):
        if isinstance(one, Hidden) and isinstance(two, Reduced):
            if two.source.group is one.group:
                # What a normalisation subtracts: the mean of the neurons themselves.
                return replace(one, chain=(*one.chain, "centre"), owned=False)
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
    left = [i for i, f in enumerate(factors) if size_of(f) != 1]
    ones = [i for i, f in enumerate(factors) if size_of(f) == 1]
    order = []
    for factor in group.factors:
        if size_of(factor) == 1:
            continue
        match = next((i for i in left if loom.leaf(factors[i]) is factor), None)
        if match is None and fixed and not (isinstance(factor, Leaf) and loom.is_free(factor)):
            match = next((i for i in left if size_of(factors[i]) == size_of(factor)), None)
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
        if isinstance(operand[1], Input) and not has_neurons(loom, operand, axes, neurons):
            kept = right if operand is left else left
            if isinstance(kept[1], Hidden):
                return with_step(loom, kept[1], kept[0], site, "add")
    if isinstance(a, Param):
        a = as_hidden(loom, a, neurons, entry)
    if isinstance(b, Param):
        b = as_hidden(loom, b, neurons, entry)
    if isinstance(a, Reduced):
        a = as_hidden(loom, a, neurons, entry)
    if isinstance(b, Reduced):
        b = as_hidden(loom, b, neurons, entry)
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
        value = operand[1]
        if isinstance(value, Hidden):
            sender = loom.read(value)
        else:
            where = _axis_of(loom, operand, axes, neurons)
            sender = read_as(loom, value, neurons, entry, where)
        if sender is target:
            continue
        if sender.size == target.size and (isinstance(value, Input) or _numbers(sender, neurons)):
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


def has_neurons(loom: Loom, operand: Operand, axes: Axes, neurons: Sequence[Leaf]) -> bool:
    """Whether a value differs between neurons, rather than being broadcast over them."""
    place, shape = _last_axis(loom, axes, neurons), operand[0].shape
    return (len(shape) >= -place and shape[place] > 1) or all(leaf.size == 1 for leaf in neurons)


def _axis_of(
    loom: Loom, operand: Operand, axes: Axes, neurons: Sequence[Leaf]
) -> tuple[int, int, int] | None:
    place, shape = _last_axis(loom, axes, neurons), operand[0].shape
    if len(shape) < -place:
        return None
    return (len(shape) + place, 0, shape[place])
