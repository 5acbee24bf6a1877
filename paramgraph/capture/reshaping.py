"""What a reshape does to axes: factors are dealt out anew, leaves split where needed."""

from __future__ import annotations

from collections.abc import Sequence

from paramgraph.capture.axes import Axis, Factor, Leaf, Pick, axis_size, resolve, size_of
from paramgraph.capture.unification import divided, pop

__all__ = ["regroup", "split_rows"]


def split_rows(axis: Sequence[Factor], row: int) -> list[tuple[Axis, Axis]] | None:
    """An axis as rows of ``row`` indices; of a leaf with pieces, each piece by itself.

    Returns:
        Which rows, and what stands in them, for each piece; ``None`` where pieces share a row.
    """
    factors = resolve(axis)
    if len(factors) == 1 and isinstance(factors[0], Leaf) and factors[0].pieces is not None:
        pieces = factors[0].pieces
        if any(axis_size(piece) % row for piece in pieces):
            return None
        found = [split_rows(piece, row) for piece in pieces]
        return None if None in found else [pair for pairs in found for pair in pairs or ()]
    halves = regroup([axis], (axis_size(axis) // row, row), None)
    return None if halves is None else [(halves[0], halves[1])]


def regroup(
    axes: Sequence[Sequence[Factor]], shape: Sequence[int], site: object
) -> list[Axis] | None:
    """The axes after a reshape: factors are dealt to the new axes, leaves split where needed.

    Args:
        axes: Axes of the tensor before.
        shape: Shape after.
        site: What reshapes; noted on leaves that become major factors.

    Returns:
        One axis per entry of ``shape``, or ``None`` when an axis cuts through a factor.
    """
    factors = [f for axis in axes for f in resolve(axis)][::-1]
    result: list[Axis] = []
    for place, size in enumerate(shape):
        have: list[Factor] = []
        if size == 1 and factors and isinstance(factors[-1], Leaf) and factors[-1].size == 1:
            have.append(factors.pop())  # a single neuron keeps its axis
        while axis_size(have) < size or (factors and size_of(factors[-1]) == 1 and size != 1):
            if not factors:
                return None
            factor = pop(factors)
            if size_of(factor) == 1 and not isinstance(factor, Pick):
                continue
            if size % axis_size(have):
                return None
            need = size // axis_size(have)
            if size_of(factor) > need:
                parts = divided(factor, need)
                if parts is None:
                    return None
                if isinstance(parts[0], Leaf):
                    parts[0].site = (site, place)
                factors.append(parts[1])
                factor = parts[0]
            have.append(factor)
        if axis_size(have) != size:
            return None
        result.append(tuple(have))
    while factors:  # nothing but single indices can be left
        factor = factors.pop()
        if size_of(factor) != 1:
            return None
        if result and isinstance(factor, Leaf | Pick) and not result[-1]:
            result[-1] = (factor,)
    return result
