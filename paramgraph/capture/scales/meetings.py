"""Which block of one tensor is which block of another, and axis by axis what is the same.

Almost every operation maps the entries of one tensor to those of another linearly, as strides do:
then the digits of two boxes that meet can be compared one by one, whatever reshaped, transposed,
cut or joined them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paramgraph.capture.scales.boxes import Box, Layout, MisfitError

__all__ = ["Meeting", "meetings"]

_MOST_SPLITS = 64


@dataclass(frozen=True)
class Meeting:
    """Two boxes that hold the same entries, and which occurrences are the same axis.

    Attributes:
        view: Number of a box of the one tensor.
        whole: Number of a box of the other.
        pairs: Occurrences (places in ``Box.occurrences``) that go together.
        view_only: Occurrences of the first that the second lacks.
        whole_only: Occurrences of the second that the first lacks.
    """

    view: int
    whole: int
    pairs: tuple[tuple[int, int], ...]
    view_only: tuple[int, ...]
    whole_only: tuple[int, ...]


def meetings(view: Layout, whole: Layout, strides: Sequence[int], offset: int = 0) -> list[Meeting]:
    """Which boxes of two tensors meet.

    Args:
        view: The one tensor.
        whole: The other.
        strides: Entry ``i`` of ``view`` is entry ``offset + sum(i * strides)`` of ``whole``,
            counted in row-major order; several entries may be the same one.
        offset: See above.

    Example:
        The columns of a matrix of neurons, transposed.

        >>> from paramgraph.capture.axes import Leaf
        >>> from paramgraph.capture.groups import Groups
        >>> from paramgraph.capture.scales.boxes import layout_of
        >>> a, b, groups = Leaf("a", 2), Leaf("b", 3), Groups(None)
        >>> matrix = layout_of(groups, ((a,), (b,)), (2, 3))
        >>> transposed = layout_of(groups, ((b,), (a,)), (3, 2))
        >>> meetings(transposed, matrix, (1, 3))[0].pairs  # a, b, and both
        ((0, 1), (1, 0), (2, 2))
    """
    found: list[Meeting] = []
    if not view.num_entries or not whole.num_entries:
        return found
    for number, box in enumerate(view.boxes):
        start = offset + sum(c * s for c, s in zip(box.start, strides, strict=True))
        moved = [(d.step * strides[d.axis], d.size) for d in box.digits]
        found += _met(number, box, start, moved, whole)
    return list(dict.fromkeys(found))


def _met(
    number: int, box: Box, start: int, moved: list[tuple[int, int]], whole: Layout
) -> Iterator[Meeting]:
    """All meetings of one box; one that lies in several is divided along its positions."""
    place = whole.find(start)
    if place is None:
        raise MisfitError
    leaving = None if len(whole.boxes) == 1 else _leaving(start, moved, whole, place[0])
    if leaving is None:
        yield _paired(number, box, moved, whole, *place)
        return
    stride, size = moved[leaving]
    if leaving in box.leaves or size > _MOST_SPLITS:
        raise MisfitError
    rest = [*moved[:leaving], (0, 1), *moved[leaving + 1 :]]
    for index in range(size):
        yield from _met(number, box, start + index * stride, rest, whole)


def _leaving(start: int, moved: list[tuple[int, int]], whole: Layout, number: int) -> int | None:
    """A digit along which a box leaves a box of the other tensor."""
    last = start
    for digit, (stride, size) in enumerate(moved):
        last += stride * (size - 1)
        for index in {1, size - 1} if size > 1 and stride else ():
            if whole.inside(number, start + index * stride) is None:
                return digit
    if whole.inside(number, last) is None:
        raise MisfitError
    return None


def _paired(
    number: int,
    box: Box,
    moved: list[tuple[int, int]],
    whole: Layout,
    other: int,
    digits: tuple[int, ...],
) -> Meeting:
    target, flat = whole.boxes[other], whole.flat[other][1]
    same: dict[int, int] = {}
    for place in box.leaves:
        stride, size = moved[place]
        leaf = box.digits[place].factor
        fits = [p for p in target.leaves if target.digits[p].factor is leaf]
        if size == 1:
            # One index moves nowhere: a single neuron is known by its name alone.
            if [box.digits[p].factor for p in box.leaves].count(leaf) > 1:
                fits = []
        else:
            fits = [p for p in fits if flat[p] == (stride, size) and not digits[p]]
        if len(fits) == 1:
            same[place] = fits[0]
    theirs = {tuple(sorted(o)): number for number, o in enumerate(target.occurrences)}
    pairs: dict[int, int] = {}
    for occurrence, places in enumerate(box.occurrences):
        met = theirs.get(tuple(sorted(same.get(place, -1) for place in places)))
        if met is not None:
            pairs[occurrence] = met
    lost = set(theirs.values()).difference(pairs.values())
    return Meeting(
        number,
        other,
        tuple(pairs.items()),
        tuple(o for o in range(len(box.occurrences)) if o not in pairs),
        tuple(sorted(lost)),
    )
