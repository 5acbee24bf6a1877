"""Any value as neurons: what an operation reads, in the order in which it needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paramgraph.capture.axes import Leaf
from paramgraph.capture.tape import TapeEntry
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.numbering import same_factors
from paramgraph.capture.weave.parameters import as_neurons
from paramgraph.capture.weave.records import Constant, Group, Hidden, Input, Param, Reduced, Strand
from paramgraph.structure import NeuronKind

__all__ = ["as_hidden", "read_as"]


_MOST_EDGES = 2**22  # of a block without parameters


def _constants(loom: Loom, wanted: tuple[Leaf, ...]) -> Group:
    """Neurons that hold constants: zeros at the start of a recurrence."""
    key = ("constant", *map(id, wanted))
    if key not in loom.adapters:
        group = Group(
            loom.unique("constant"),
            wanted,
            math.prod(f.size for f in wanted),
            NeuronKind.FIXED,
            chain=(),
        )
        loom.groups.append(group)
        loom.adapters[key] = group
    return loom.adapters[key]


def read_as(
    loom: Loom,
    value: Strand,
    wanted: tuple[Leaf, ...],
    entry: TapeEntry,
    where: tuple[int, int, int] | None = None,
) -> Group:
    """The neurons of a value in the order ``wanted``, through a link where they differ.

    Args:
        loom: What was woven so far.
        value: What is read.
        wanted: Factors that number the neurons.
        entry: Who reads.
        where: For inputs the axis that is read, its first index, and how many indices.
    """
    if isinstance(value, Constant):
        return _constants(loom, wanted)
    if isinstance(value, Input):
        axis, start, size = where or (-1, 0, None)
        found = loom.read_input(value, axis, start, size)
        need = math.prod(leaf.size for leaf in wanted)
        return found if found.size == need else _adapter(loom, found, wanted, entry)
    if not isinstance(value, Hidden):
        value = as_hidden(loom, value, wanted, entry)
    found = loom.read(value)
    return found if same_factors(found.factors, wanted) else _adapter(loom, found, wanted, entry)


def _adapter(loom: Loom, found: Group, wanted: tuple[Leaf, ...], entry: TapeEntry) -> Group:
    key = (id(found), *map(id, wanted))
    if key not in loom.adapters:
        group = loom.new_group(entry, wanted)
        group.chain = ()
        loom.flow(found, group)
        loom.adapters[key] = group
    return loom.adapters[key]


def as_hidden(loom: Loom, value: Strand, wanted: Sequence[Leaf], entry: TapeEntry) -> Hidden:
    """Any value as activations of a group; ``wanted`` says which frozen leaves are neurons."""
    if isinstance(value, Hidden):
        return value
    if isinstance(value, Reduced):
        return _statistic(loom, value, wanted, entry)
    if isinstance(value, Param):
        return as_neurons(loom, value, wanted, entry)
    if isinstance(value, Input):
        return Hidden(loom.read_input(value, -1), owned=False)
    return Hidden(_constants(loom, tuple(wanted)), owned=False)


def _statistic(loom: Loom, value: Reduced, wanted: Sequence[Leaf], entry: TapeEntry) -> Hidden:
    sender = loom.read(value.source)
    ids = {id(leaf) for leaf in wanted}
    kept = tuple(f for f in sender.factors if id(f) in ids)
    key = ("statistic", id(sender), *map(id, kept))
    if key not in loom.adapters:
        loom.adapters[key] = loom.new_group(entry, kept)
        loom.flow(sender, loom.adapters[key])
    return Hidden(loom.adapters[key], value.chain, owned=False)
