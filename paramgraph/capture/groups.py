"""Types to axis groups: names, dependencies (wreath products), and the parts of every parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from paramgraph.capture.axes import Axis, Factor, Leaf, Pick, axis_size, leaves, resolve, size_of
from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import entry_refs
from paramgraph.capture.tensor_types import Axes, Bundle, TensorType, contexts
from paramgraph.structure import AxisGroup, ParameterPart, Split, Step, Take
from paramgraph.structure import Factor as NamedFactor

__all__ = ["Groups", "find_groups"]

Tokens = tuple[tuple[Factor, ...], ...]
"""The factors of every axis of one block of a tensor."""


@dataclass
class Groups:
    """The axis groups of a run.

    Attributes:
        run: Where they come from.
        rows: The table, in order of the parameters that they move.
        names: Name of each leaf, by its identity.
        used: Names of the parameters and statistics that reach the outputs; of parameters that are
            rows of one (experts that are modules of their own) the first.
    """

    run: Inference
    rows: list[AxisGroup] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)

    def parameter(self, name: str) -> tuple[TensorType, tuple[int, ...], tuple[str, ...]]:
        """Type and shape of a parameter in use, and its members when it is a stack of several."""
        for stack in self.run.stacks:
            if name == stack.members[0]:
                return stack.type, (len(stack.members), *stack.shape), stack.members
        ref = self.run.tape.parameters[name]
        return self.run.types[ref.number], ref.shape, ()

    def factors(self, axis: Iterable[Factor]) -> Axis:
        """Resolved factors of an axis."""
        return resolve(tuple(axis))

    def named(self, axis: Iterable[Factor]) -> tuple[NamedFactor, ...]:
        """Factors of an axis without pieces, leaves by name."""
        return tuple(
            self.names.get(id(f), f.size) if isinstance(f, Leaf) else size_of(f)
            for f in self.factors(axis)
        )

    def blocks(self, kind: TensorType) -> Iterator[Axes]:
        """Every block of a tensor that has no pieces: see ``contexts``."""
        for axes in contexts(kind):
            yield tuple(self.factors(axis) for axis in axes)

    def parts(self, kind: TensorType, shape: tuple[int, ...]) -> list[ParameterPart]:
        """The parts of a parameter, one per block, in the order of ``blocks``."""
        found: list[tuple[list[Step], list[NamedFactor]]] = []
        start = 0
        for axes in kind.blocks if isinstance(kind, Bundle) else (kind,):
            lead: list[Step] = []
            if isinstance(kind, Bundle):
                size = axis_size(axes[kind.axis])
                lead.append(Take(kind.axis, start, size))
                start += size
            # From the last axis on, so that the numbers of those before it stay.
            ways: list[tuple[list[Step], list[list[NamedFactor]]]] = [(lead, [])]
            for place in reversed(range(len(axes))):
                new = self._ways(place, axes[place])
                # Blocks come with the first axis slowest, as in ``contexts``.
                ways = [(s + t, [f, *g]) for t, f in new for s, g in ways]
            found += [(steps, [f for fs in groups for f in fs]) for steps, groups in ways]
        return [ParameterPart(tuple(steps), tuple(factors)) for steps, factors in found]

    def _ways(
        self, place: int, axis: Iterable[Factor]
    ) -> list[tuple[list[Step], list[NamedFactor]]]:
        """Every choice of pieces on one axis: the steps to it, and its factors."""
        factors = self.factors(axis)
        steps: list[Step] = []
        if len(factors) != 1:
            steps.append(Split(place, tuple(map(size_of, factors))))
        ways: list[tuple[list[Step], list[NamedFactor]]] = [(steps, [])]
        for offset in reversed(range(len(factors))):
            factor, here = factors[offset], place + offset
            if isinstance(factor, Leaf) and factor.pieces is not None:
                new = []
                start = 0
                for piece in factor.pieces:
                    size = axis_size(piece)
                    for inner, names in self._ways(here, piece):
                        for before, after in ways:
                            new.append(([*before, Take(here, start, size), *inner], names + after))
                    start += size
                ways = new
            else:
                ways = [(before, [*self.named((factor,)), *after]) for before, after in ways]
        return ways


def find_groups(run: Inference) -> Groups:
    """Axis groups of the parameters that reach the outputs, with what they depend on."""
    groups = Groups(run)
    runs = [run, *run.others]
    read: set[str] = set()
    for one in runs:
        numbers = {ref.number for entry in one.entries for ref in entry_refs(entry.args)}
        numbers |= {ref.number for ref in one.tape.outputs}
        read |= {name for name, ref in one.tape.parameters.items() if ref.number in numbers}
    live = [name for name in run.tape.parameters if name in run.tape.leafy & read]
    rows = {name for stack in run.stacks for name in stack.members[1:]}
    groups.used = [name for name in live if name not in rows]
    seen: set[Tokens] = set()
    for one in runs:
        idle = {ref.number for name, ref in one.tape.parameters.items() if name not in live}
        for number, kind in one.types.items():
            if number not in idle:
                seen.update(_tokens(axes) for axes in contexts(kind))
    reduced = [axes for one in runs for axes in one.reduced]
    for axes in [*reduced, *(stack.type for stack in run.stacks)]:
        seen.update(_tokens(block) for block in contexts(axes))
    every = sorted(seen, key=repr)
    together, first = _company(every)
    moved = _leaves_of(groups)
    for leaf in list(moved.values()):
        for other in together.get(id(leaf), {}).values():
            moved.setdefault(id(other), other)
    _name(groups, moved)
    for leaf in moved.values():
        reason = leaf.frozen or ("only one neuron" if leaf.size < 2 else None)
        given: tuple[str, ...] = ()
        if reason is None:
            others = [
                other
                for other in together[id(leaf)].values()
                if other.size > 1 and _depends(leaf, other, together, first)
            ]
            others.sort(key=lambda o: (len(together[id(o)]), first[id(o)]))
            given = tuple(groups.names[id(other)] for other in others)
        groups.rows.append(
            AxisGroup(groups.names[id(leaf)], leaf.size, reason is None, reason, given)
        )
    return groups


def _tokens(axes: Axes) -> Tokens:
    """Hashable factors of a block."""
    return tuple(tuple(resolve(axis)) for axis in axes)


def _members(block: Tokens) -> list[tuple[Leaf, bool]]:
    """The leaves of a block in order, and whether each stands there itself or as a choice."""
    found: list[tuple[Leaf, bool]] = []
    for axis in block:
        for factor in axis:
            if isinstance(factor, Leaf):
                found.append((factor, True))
            elif isinstance(factor, Pick):
                found += [(leaf, False) for leaf in leaves((factor.leaf,))]
    return found


def _company(
    every: list[Tokens],
) -> tuple[dict[int, dict[int, Leaf]], dict[int, tuple[int, int]]]:
    """For each leaf those that stand in every block that it stands in, and where it first stood."""
    together: dict[int, dict[int, Leaf]] = {}
    first: dict[int, tuple[int, int]] = {}
    for number, block in enumerate(every):
        members = _members(block)
        real = [id(leaf) for leaf, is_real in members if is_real]
        repeated = {key for key in real if real.count(key) > 1}
        here = {id(leaf): leaf for leaf, _ in members}
        axes = [[id(f) for f in axis if isinstance(f, Leaf)] for axis in block]
        for place, (leaf, is_real) in enumerate(members):
            if not is_real:
                continue
            key = id(leaf)
            first.setdefault(key, (number, place))
            beside = {k: v for k, v in here.items() if k != key}
            # Where either of two stands twice, they must stand together on every axis.
            beside = {
                k: v
                for k, v in beside.items()
                if (key not in repeated and k not in repeated) or _stand_together(axes, key, k)
            }
            known = together.get(key)
            together[key] = (
                beside if known is None else {k: v for k, v in known.items() if k in beside}
            )
    return together, first


def _stand_together(axes: list[list[int]], key: int, other: int) -> bool:
    return all(axis.count(key) == 1 and axis.count(other) == 1 for axis in axes if key in axis)


def _depends(
    leaf: Leaf,
    other: Leaf,
    together: dict[int, dict[int, Leaf]],
    first: dict[int, tuple[int, int]],
) -> bool:
    """Of two that always stand together, the minor one depends on the major one."""
    if id(leaf) not in together.get(id(other), {}):
        return True
    return first[id(other)] < first[id(leaf)]


def _leaves_of(groups: Groups) -> dict[int, Leaf]:
    """Leaves of the parameters in use, in order."""
    found: dict[int, Leaf] = {}
    for name in groups.used:
        for block in groups.blocks(groups.parameter(name)[0]):
            for axis in block:
                for factor in axis:
                    if isinstance(factor, Leaf):
                        found.setdefault(id(factor), factor)
    return found


def _name(groups: Groups, found: dict[int, Leaf]) -> None:
    taken: dict[str, int] = {}
    for key, leaf in found.items():
        count = taken[leaf.name] = taken.get(leaf.name, 0) + 1
        groups.names[key] = leaf.name if count == 1 else f"{leaf.name}#{count}"
