"""Layouts and meetings of the tensors of a run, each made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paramgraph.capture.axes import Factor, Leaf, Pick, resolve, size_of
from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.scales.boxes import Layout, layout_of
from paramgraph.capture.scales.meetings import Meeting, meetings
from paramgraph.capture.tape import TensorRef
from paramgraph.capture.tensor_types import Bundle, TensorType

__all__ = ["Geometry"]


@dataclass
class Geometry:
    """Layouts and meetings of a run; they are the same for scales and for signs.

    Attributes:
        run: Types of the tensors.
        groups: The axis groups.
        layouts: Blocks of tensors, by their number, and of what is computed on the way.
        met: Which blocks meet.
    """

    run: Inference
    groups: Groups
    layouts: dict[object, Layout] = field(default_factory=dict)
    met: dict[tuple[object, ...], list[Meeting]] = field(default_factory=dict)

    def layout(self, ref: TensorRef) -> Layout:
        """The blocks of a tensor."""
        known = self.layouts.get(ref.number)
        if known is None:
            kind = self.run.type(ref)
            # Tensors of one type share their layout, so that they meet only once.
            key = ref.shape, _fingerprint(kind)
            known = self.made(key, lambda: layout_of(self.groups, kind, ref.shape))
            self.layouts[ref.number] = known
        return known

    def made(self, key: object, make: Callable[[], Layout]) -> Layout:
        """A layout that is no tensor of the tape, made once."""
        known = self.layouts.get(key)
        if known is None:
            known = self.layouts[key] = make()
        return known

    def typed(self, key: object, kind: TensorType, shape: Sequence[int]) -> Layout:
        """Like ``made``, from a type."""
        return self.made(key, lambda: layout_of(self.groups, kind, shape))

    def meetings(
        self, view: Layout, whole: Layout, strides: Sequence[int], offset: int
    ) -> list[Meeting]:
        """See ``boxes.meetings``."""
        key = (view, whole, tuple(strides), offset)
        known = self.met.get(key)
        if known is None:
            known = self.met[key] = meetings(view, whole, strides, offset)
        return known


def _fingerprint(kind: TensorType) -> object:
    """What two types have in common that have the same blocks."""
    if isinstance(kind, Bundle):
        return (kind.axis, *map(_fingerprint, kind.blocks))
    return tuple(tuple(map(_mark, resolve(axis))) for axis in kind)


def _mark(factor: Factor) -> object:
    if isinstance(factor, Leaf):
        return id(factor)
    return (size_of(factor), id(factor.leaf)) if isinstance(factor, Pick) else -size_of(factor)
