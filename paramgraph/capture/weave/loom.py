"""The loom: neuron groups and edge blocks while they are made, and what joins them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from paramgraph.capture.activations import Chain
from paramgraph.capture.axes import Factor, size_of
from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import TapeEntry, TensorRef, entry_refs
from paramgraph.capture.weave.numbering import Numbering
from paramgraph.capture.weave.partition import Partition
from paramgraph.capture.weave.records import Constant, Group, Hidden, Input, Link, Piece, Strand
from paramgraph.structure import EdgeKind, EntryView, NeuronKind, NeuronRole

__all__ = ["Loom"]


_MOST_EDGES = 2**22  # of a block without parameters


class Loom(Numbering):
    """Everything that was woven so far.

    Attributes:
        run: The run that is being woven: types of all its tensors.
        runs: All that were begun.
        span: Tensors of the run with number n have numbers from n times this one on.
        groups: Neuron groups in the order of creation.
        links: Edge blocks in the order of creation.
        strands: What is known of each block of each tensor, by the tensor's number.
        uses: How often each tensor is read.
        claimed: Parts of parameters that stand in the graph.
        inputs: Groups of inputs, by tensor, axis, first index and number of indices.
    """

    def __init__(self, run: Inference, axis_groups: Groups, span: int) -> None:
        super().__init__(axis_groups)
        self.run = run
        self.runs: list[Inference] = []
        self.span = span
        self.groups: list[Group] = []
        self.links: list[Link] = []
        self.strands: dict[int, tuple[Strand, ...]] = {}
        self.uses: dict[int, int] = {}
        self.claimed: set[tuple[str, int]] = set()
        self.pending: dict[tuple[str, int], tuple[Group | None, Group | None]] = {}
        self._partitions: dict[int, Partition] = {}
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}
        self.made: dict[tuple[object, ...], Group] = {}
        self.mixed: dict[tuple[int, int], set[object]] = {}
        self.inputs: dict[tuple[int, int, int, int], Group] = {}
        self.adapters: dict[tuple[object, ...], Group] = {}
        self._joined: set[tuple[int, int, EdgeKind]] = set()

    def start_run(self, run: Inference) -> None:
        """Go on with another run; values that do not differ between runs stay known."""
        self.run = run
        for ref in run.tape.inputs:
            self._partitions.pop(ref.number, None)  # of another length perhaps
        if any(run is one for one in self.runs):
            return
        self.runs.append(run)
        for entry in run.entries:
            for ref in entry_refs(entry.args):
                self.uses[ref.number] = self.uses.get(ref.number, 0) + 1
        for ref in run.tape.outputs:
            self.uses[ref.number] = self.uses.get(ref.number, 0) + 1

    # What tensors and factors are

    def partition(self, ref: TensorRef) -> Partition:
        """The blocks of a tensor."""
        if ref.number not in self._partitions:
            self._partitions[ref.number] = Partition(self.axis_groups, self.run.type(ref))
        return self._partitions[ref.number]

    def strand(self, ref: TensorRef, block: int = 0) -> Strand:
        """What is known of one block of a tensor."""
        found = self.strands.get(ref.number)
        if found is None:
            if ref.number in self.run.data:
                return Input(ref.number, ref.shape)
            return Constant(self._number(ref))
        return found[block] if block < len(found) else found[-1]

    def _number(self, ref: TensorRef) -> float | None:
        """The value of a constant when it is one number everywhere."""
        tensor = self.run.tape.tensors.get(ref.number)
        if tensor is None or tensor.is_meta or not tensor.numel() or tensor.is_complex():
            return None
        flat = tensor.detach().reshape(-1)
        is_stored = ref.number in self.run.stored
        if is_stored and (tensor.numel() > 1 or flat[0] == 0):
            return None  # equal values may differ in another network, and 0 may not be 0
        return float(flat[0]) if bool((flat == flat[0]).all()) else None

    # Making groups and links

    def new_group(
        self,
        entry: TapeEntry,
        factors: Sequence[Factor],
        name: str = "",
        *,
        kind: NeuronKind = NeuronKind.HIDDEN,
        origin: tuple[int, int] | None = None,
    ) -> Group:
        """A neuron group named after a parameter's module, or after the module that ran."""
        stem = name.rpartition(".")[0] or entry.module or entry.operation.removeprefix("aten.")
        factors = self.closed(factors)
        size = math.prod(size_of(factor) for factor in factors)
        group = Group(self.unique(stem), factors, size, kind, origin=origin)
        self.groups.append(group)
        return group

    def unique(self, stem: str) -> str:
        """A name that no group has yet."""
        name, number = stem, self._counts.get(stem, 2)
        while name in self._names:
            name, number = f"{stem}#{number}", number + 1
        self._counts[stem] = number
        self._names.add(name)
        return name

    def skip(self, sender: Group, receiver: Group, constant: float = 1.0) -> None:
        """A sum: every neuron is added to its counterpart, ``constant`` times."""
        self.links.append(
            Link(
                f"{sender.name}->{receiver.name}",
                EdgeKind.SKIP,
                sender,
                receiver,
                (receiver.size, 1, 1),
                constant=constant,
            )
        )

    def flow(self, sender: Group, receiver: Group, kind: EdgeKind = EdgeKind.FLOW) -> None:
        """A link without parameters; what both groups are numbered by is joined one to one."""
        if sender is receiver or (id(sender), id(receiver), kind) in self._joined:
            return
        self._joined.add((id(sender), id(receiver), kind))
        blocks = 1
        ends = ([f for f in end.factors if size_of(f) > 1] for end in (sender, receiver))
        for ours, theirs in zip(*ends, strict=False):
            if ours is not theirs and ours != theirs:
                break
            blocks *= size_of(ours)
        senders, receivers = sender.size // blocks, receiver.size // blocks
        if blocks * senders * receivers > _MOST_EDGES and min(senders, receivers) > 1:
            # All to all is too many edges to say "these depend on those": one neuron in between
            # says it too, and treats all of them alike.
            hub = Group(self.unique(f"{receiver.name}.hub"), (), 1, chain=())
            self.groups.append(hub)
            self.flow(sender, hub, kind)
            self.flow(hub, receiver, kind)
            return
        name = f"{sender.name}->{receiver.name}"
        self.links.append(Link(name, kind, sender, receiver, (blocks, receivers, senders)))

    def block(
        self,
        parameter: str,
        part: int,
        kind: EdgeKind,
        ends: tuple[Group, Group],
        order: Sequence[int],
        shape: tuple[int, int, int],
        positions: tuple[tuple[float, float], ...] = ((0.0, 0.0),),
    ) -> None:
        """An edge block of a part of a parameter, from ``ends[0]`` to ``ends[1]``."""
        self.claimed.add((parameter, part))
        view = EntryView(parameter, part, tuple(order), (*shape, len(positions)))
        sender, receiver = ends
        name = self.part_name(parameter, part)
        self.links.append(Link(name, kind, sender, receiver, shape, positions, view))

    def part_name(self, parameter: str, part: int) -> str:
        """The parameter, with the number of the part where it has several."""
        several = len(self.parameter_blocks(parameter)) > 1
        return f"{parameter}[{part}]" if several else parameter

    def feature(self, role: NeuronRole, group: Group, piece: Piece, order: Sequence[int]) -> None:
        """A value per neuron."""
        self.claimed.add((piece.parameter, piece.part))
        group.features[role] = EntryView(piece.parameter, piece.part, tuple(order), (group.size,))

    # Reading neurons

    def read(self, value: Hidden) -> Group:
        """The group whose neurons, after their activation, are ``value``."""
        group = value.group
        if group.chain is None:
            group.chain = value.chain
        if group.chain == value.chain:
            return group
        if group.chain != ():
            self._make_plain(group)
        if value.chain == ():
            return group
        if value.chain not in group.copies:
            group.copies[value.chain] = self._copy(group, value.chain)
        return group.copies[value.chain]

    def _copy(self, group: Group, chain: Chain) -> Group:
        """The same neurons once more, under another activation."""
        copy = replace(group, name=self.unique(group.name), chain=chain, features={}, copies={})
        copy.kind = NeuronKind.HIDDEN
        self.groups.append(copy)
        self.skip(group, copy)
        return copy

    def _make_plain(self, group: Group) -> None:
        """Move the activation of a group, its readers and its statistics to a copy."""
        assert group.chain is not None
        readers = [link for link in self.links if link.sender is group]
        copy = self._copy(group, group.chain)
        for link in readers:
            link.sender = copy
        if group.kind is NeuronKind.OUTPUT:
            group.kind, copy.kind = NeuronKind.HIDDEN, NeuronKind.OUTPUT
        for role in (NeuronRole.MEAN, NeuronRole.VARIANCE):
            if role in group.features:
                copy.features[role] = group.features.pop(role)
        group.copies[group.chain] = copy
        group.chain = ()

    def read_input(self, value: Input, axis: int, start: int = 0, size: int | None = None) -> Group:
        """The inputs along one axis, or some of them, as neurons."""
        axis %= max(len(value.shape), 1)
        size = size or (value.shape[axis] if value.shape else 1)
        key = (value.number, axis, start, size)
        if key not in self.inputs:
            name = self.unique("input" if not self.inputs else f"input.{len(self.inputs)}")
            group = Group(name, (size,), size, NeuronKind.INPUT, chain=())
            self.inputs[key] = group
            self.groups.append(group)
        return self.inputs[key]
