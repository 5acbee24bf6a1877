"""Which neuron groups share their nodes in the parameter encoding.

A normalisation has no neurons there: its gains and shifts are edges to the neurons that enter it.
A linear map without bias whose result is only added to other neurons has none either: its weights
are edges to these. Both are undone where the nodes would no longer say what the network computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramgraph.structure import (
    Activation,
    EdgeBlock,
    EdgeKind,
    NeuronGroup,
    NeuronKind,
    NeuronRole,
    NormKind,
)

__all__ = ["Merging", "merge_groups"]


@dataclass(frozen=True)
class Merging:
    """What ``merge_groups`` finds.

    Attributes:
        root: For each neuron group the one whose nodes stand for it, neuron by neuron.
        depths: Depth of each root, of the others that of their root.
        gains: Blocks that hold the gains of a normalisation.
        silent: Blocks that lead from nodes to themselves and hold no parameter.
    """

    root: tuple[int, ...]
    depths: tuple[int, ...]
    gains: frozenset[int]
    silent: frozenset[int]


def merge_groups(groups: Sequence[NeuronGroup], blocks: Sequence[EdgeBlock]) -> Merging:
    """Find which groups share their nodes.

    Args:
        groups: Neuron groups, in dataflow order.
        blocks: Edge blocks.

    Example:
        >>> inputs = NeuronGroup("in", 2, NeuronKind.INPUT)
        >>> norm = NeuronGroup("norm", 2, NeuronKind.HIDDEN, norm=NormKind.LAYER)
        >>> gain = EdgeBlock("norm.weight", EdgeKind.SCALE, 0, 1, 2, 1, 1)
        >>> merge_groups([inputs, norm], [gain]).root
        (0, 0)
    """
    plan = _Plan(groups, blocks)
    gains, silent = set(), set()
    for number, group in enumerate(groups):
        scale = plan.scale_into(number) if group.norm is not NormKind.NONE else None
        if scale is None:
            continue
        if blocks[scale].view is not None:
            gains.add(scale)
        if plan.can_join(scale):
            plan.join(number, blocks[scale].sender)
            if blocks[scale].view is None:
                silent.add(scale)
    for number in range(len(groups)):
        skip = plan.only_summand(number)
        if skip is not None:
            plan.join(number, blocks[skip].receiver)
            silent.add(skip)
    has_hub = {plan.root[blocks[number].receiver] for number in gains}
    for number, group in enumerate(groups):
        if any(feature.role is NeuronRole.BIAS for feature in group.features):
            has_hub.add(plan.root[number])
    depths = plan.depths(has_hub)
    return Merging(tuple(plan.root), depths, frozenset(gains), frozenset(silent))


def is_diagonal(block: EdgeBlock) -> bool:
    """Whether neuron i of the sender is joined with neuron i of the receiver alone."""
    return block.shape == (block.num_blocks, 1, 1, 1)


class _Plan:
    """The groups while they are being joined."""

    def __init__(self, groups: Sequence[NeuronGroup], blocks: Sequence[EdgeBlock]) -> None:
        self.groups, self.blocks = groups, blocks
        self.root = list(range(len(groups)))
        self.members = [[number] for number in range(len(groups))]
        self.incoming: list[list[int]] = [[] for _ in groups]
        self.outgoing: list[list[int]] = [[] for _ in groups]
        for number, block in enumerate(blocks):
            self.incoming[block.receiver].append(number)
            self.outgoing[block.sender].append(number)

    def join(self, number: int, other: int) -> None:
        """Let the nodes of one group stand for another one, too."""
        root = self.root[other]
        for member in self.members[number]:
            self.root[member] = root
        self.members[root] += self.members[number]
        self.members[number] = []

    def scale_into(self, number: int) -> int | None:
        """The one block that brings the normalised neurons, if there is just one."""
        scales = [
            b
            for b in self.incoming[number]
            if self.blocks[b].kind is EdgeKind.SCALE and is_diagonal(self.blocks[b])
        ]
        return scales[0] if len(scales) == 1 else None

    def can_join(self, scale: int) -> bool:
        """Whether the neurons before and after a normalisation can be the same nodes."""
        sender, receiver = self.blocks[scale].sender, self.blocks[scale].receiver
        before = [self.groups[member] for member in self.members[self.root[sender]]]
        after = self.groups[receiver]
        # Two outputs, or an input that is an output, are two nodes.
        if after.kind is not NeuronKind.HIDDEN and any(
            group.kind is not NeuronKind.HIDDEN for group in before
        ):
            return False
        # A node has one activation and one running mean.
        activations = {group.activation for group in (*before, after)} - {Activation.NONE}
        if len(activations) > 1:
            return False
        statistics = {f.role for f in after.features if f.role is not NeuronRole.BIAS}
        if any(feature.role in statistics for group in before for feature in group.features):
            return False
        others = {self.root[self.blocks[b].sender] for b in self.incoming[receiver] if b != scale}
        return not others or not (others & self._reached_from(self.root[sender], receiver))

    def _reached_from(self, start: int, barred: int) -> set[int]:
        """Roots that a signal of ``start`` reaches, ``start`` too, not by way of ``barred``."""
        seen, waiting = {start}, [start]
        while waiting:
            for target in self._readers(waiting.pop()):
                if target not in seen and target != barred:
                    seen.add(target)
                    waiting.append(target)
        return seen

    def _readers(self, root: int) -> list[int]:
        targets = [
            self.root[self.blocks[b].receiver] for m in self.members[root] for b in self.outgoing[m]
        ]
        return [target for target in targets if target != root]

    def only_summand(self, number: int) -> int | None:
        """The skip by which a linear map without bias is added to other neurons, its only use."""
        group = self.groups[number]
        if self.members[number] != [number] or group.features or group.norm is not NormKind.NONE:
            return None
        if group.kind is not NeuronKind.HIDDEN or group.activation is not Activation.NONE:
            return None
        # `mul(0.5)` is an activation without a name: Activation.NONE means that there is none.
        if group.activation_text or len(self.outgoing[number]) != 1:
            return None
        skip = self.blocks[self.outgoing[number][0]]
        if skip.kind is not EdgeKind.SKIP or skip.constant != 1 or not is_diagonal(skip):
            return None
        maps = [self.blocks[b] for b in self.incoming[number]]
        linear = (EdgeKind.LINEAR, EdgeKind.CONV)
        if not maps or any(b.view is None or b.kind not in linear for b in maps):
            return None
        return self.outgoing[number][0]

    def depths(self, has_hub: set[int]) -> tuple[int, ...]:
        """Longest path to the root of each group; what a bias node sends to is at 1 or deeper."""
        roots = [number for number, members in enumerate(self.members) if members]
        depth = {root: int(root in has_hub) for root in roots}
        missing = dict.fromkeys(roots, 0)
        for root in roots:
            for target in self._readers(root):
                missing[target] += 1
        ready = [root for root in roots if not missing[root]]
        done = 0
        while ready:
            root = ready.pop()
            done += 1
            for target in self._readers(root):
                depth[target] = max(depth[target], depth[root] + 1)
                missing[target] -= 1
                if not missing[target]:
                    ready.append(target)
        assert done == len(roots), "merged nodes lead in a circle"
        return tuple(depth[root] for root in self.root)
