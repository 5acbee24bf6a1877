"""Which axis groups the factors of an axis group may depend on.

The heads of rotary attention cannot permute their dimensions, yet these rescale in each head on
its own: a group may depend on all groups that stand wherever it stands, free or not.
"""

from __future__ import annotations

from collections.abc import Iterable

from paramgraph.capture.axes import Leaf, Pick, leaves
from paramgraph.capture.groups import Groups
from paramgraph.capture.scales.boxes import Box, Layout

__all__ = ["Dependencies"]


class Dependencies:
    """For every leaf of the parameters, the leaves that its factors depend on."""

    def __init__(self, groups: Groups, layouts: Iterable[Layout]) -> None:
        """Find them.

        Args:
            groups: The axis groups; what free ones depend on is known.
            layouts: Blocks of all tensors.
        """
        self._given: dict[int, tuple[Leaf, ...]] = {}
        boxes = [box for layout in layouts for box in layout.boxes]
        known: dict[str, Leaf] = {}
        company: dict[int, dict[int, Leaf]] = {}
        twice: set[int] = set()
        for box in boxes:
            here = _members(box)
            real = [id(box.digits[place].factor) for place in box.leaves]
            twice.update(key for key in real if real.count(key) > 1)
            for place in box.leaves:
                leaf = box.digits[place].factor
                assert isinstance(leaf, Leaf)
                if id(leaf) in groups.names:
                    known.setdefault(groups.names[id(leaf)], leaf)
                others = company.setdefault(id(leaf), here)
                if others.keys() - here.keys():
                    company[id(leaf)] = {k: v for k, v in others.items() if k in here}
        rows = {row.name: row for row in groups.rows}
        for name, leaf in known.items():
            if name in rows and rows[name].free:
                self._given[id(leaf)] = tuple(known[n] for n in rows[name].given if n in known)
        for leaf in known.values():
            if id(leaf) not in self._given and id(leaf) not in twice:
                others = company[id(leaf)]
                self._given[id(leaf)] = tuple(
                    other
                    for key, other in others.items()
                    if key != id(leaf)
                    and key not in twice
                    and key in groups.names
                    and other.size > 1
                    and id(leaf) not in map(id, self(other))
                )

    def __call__(self, leaf: Leaf) -> tuple[Leaf, ...]:
        """What a leaf depends on, major to minor."""
        return self._given.get(id(leaf), ())


def _members(box: Box) -> dict[int, Leaf]:
    """The leaves of a block, and those that its positions are choices of."""
    found: dict[int, Leaf] = {}
    for digit in box.digits:
        if isinstance(digit.factor, Leaf):
            found[id(digit.factor)] = digit.factor
        elif isinstance(digit.factor, Pick):
            found.update({id(leaf): leaf for leaf in leaves((digit.factor.leaf,))})
    return found
