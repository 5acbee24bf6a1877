"""How neurons are numbered: the leaves that stand on the axes of a tensor, in one order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paramgraph.capture.axes import Factor, Leaf, Pick, resolve, size_of
from paramgraph.capture.groups import Groups
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.partition import Partition

__all__ = ["Numbering", "same_factors"]


_MOST_EDGES = 2**22  # of a block without parameters


class Numbering:
    """The axis groups of a network as numbers of neurons.

    Attributes:
        axis_groups: Names of the leaves.
    """

    def __init__(self, axis_groups: Groups) -> None:
        self.axis_groups = axis_groups
        self._parameters: dict[str, list[Axes]] = {}
        rows = [row.name for row in axis_groups.rows]
        self._given = {row.name: row.given for row in axis_groups.rows}
        self._rank = {name: place for place, name in enumerate(_given_first(rows, self._given))}
        self._leaves = {
            self.name_of(leaf): leaf
            for name in axis_groups.used
            for axes in self.parameter_blocks(name)
            for leaf in self.present(axes)
        }

    def parameter_blocks(self, name: str) -> list[Axes]:
        """The axes of each part of a parameter, or of a stack of parameters."""
        if name not in self._parameters:
            kind, _, _ = self.axis_groups.parameter(name)
            self._parameters[name] = Partition(self.axis_groups, kind).axes
        return self._parameters[name]

    def leaf(self, factor: Factor) -> Leaf | None:
        """The axis group a factor stands for, itself or as a choice; ``None`` for positions."""
        if isinstance(factor, Pick):
            inner = resolve((factor.leaf,))
            factor = inner[0] if len(inner) == 1 else factor
        if isinstance(factor, Leaf) and id(factor) in self.axis_groups.names:
            return factor
        return None

    def is_free(self, leaf: Leaf) -> bool:
        """Whether the neurons that a leaf numbers may be permuted."""
        return leaf.frozen is None and leaf.size > 1

    def present(self, axes: Axes) -> list[Leaf]:
        """All leaves that stand on some axes, in order, with repetitions."""
        return [leaf for axis in axes for f in axis if (leaf := self.leaf(f)) is not None]

    def distinct(self, axes: Axes) -> list[Leaf]:
        """The leaves on some axes; a choice of one, made several times over, counts once."""
        return _as_often(self.present(axes), axes)

    def ordered(self, leaves: Iterable[Leaf]) -> tuple[Leaf, ...]:
        """Leaves in canonical order: those that others depend on first."""
        return tuple(sorted(leaves, key=self.rank))

    def rank(self, leaf: Leaf) -> int:
        """The place of a leaf in canonical order."""
        return self._rank[self.name_of(leaf)]

    def name_of(self, leaf: Leaf) -> str:
        """The axis group of a leaf."""
        return self.axis_groups.names[id(leaf)]

    def given_by(self, leaves: Iterable[Leaf]) -> set[str]:
        """The axis groups that the neurons of some leaves depend on."""
        return {name for leaf in leaves for name in self._given[self.name_of(leaf)]}

    def neurons_in(self, axes: Axes, known: Iterable[Factor]) -> tuple[Leaf, ...]:
        """Leaves of a block that are ``known`` to number neurons, with what they depend on."""
        here = self.present(axes)
        neurons = {id(leaf): leaf for leaf in known if isinstance(leaf, Leaf)}
        names = self.given_by(neurons.values())
        kept = [f for f in here if id(f) in neurons or self.name_of(f) in names]
        return self.ordered(_as_often(kept, axes))

    def closed(self, factors: Sequence[Factor]) -> tuple[Factor, ...]:
        """Factors with those that they depend on, which neurons cannot be numbered without."""
        own = [f for f in factors if isinstance(f, Leaf)]
        missing = self.given_by(own) - set(map(self.name_of, own))
        return (*self.ordered(self._leaves[name] for name in missing), *factors)


def same_factors(first: Sequence[Factor], second: Sequence[Factor]) -> bool:
    """Whether two groups are numbered alike; single neurons need no number."""
    one, two = ([f for f in factors if size_of(f) > 1] for factors in (first, second))
    return len(one) == len(two) and all(
        a is b or (isinstance(a, int) and a == b) for a, b in zip(one, two, strict=True)
    )


def _as_often(kept: list[Leaf], axes: Axes) -> list[Leaf]:
    """Repetitions are kept only where a leaf itself stands twice, not as a choice of it."""
    real = [id(f) for axis in axes for f in axis if isinstance(f, Leaf)]
    result: list[Leaf] = []
    for leaf in kept:
        have = sum(other is leaf for other in result)
        if have < max(real.count(id(leaf)), 1):
            result.append(leaf)
    return result


def _given_first(names: list[str], given: dict[str, tuple[str, ...]]) -> list[str]:
    """Names in order, each after those that it depends on."""
    result: dict[str, None] = {}

    def add(name: str) -> None:
        if name not in result:
            for other in given.get(name, ()):
                add(other)
            result.setdefault(name)

    for name in names:
        add(name)
    return list(result)
