"""The walk over the tape: one operation after the other, repeated ones only a few times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paramgraph.capture.axis_rules.spatial import SPATIAL
from paramgraph.capture.groups import Groups
from paramgraph.capture.inference import Inference
from paramgraph.capture.tape import ALIASED, FACTORIES, Tape, TapeEntry, entry_refs
from paramgraph.capture.weave.contraction import PRODUCTS, contraction
from paramgraph.capture.weave.elementwise import elementwise
from paramgraph.capture.weave.layers import gated, generic, written
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import MOVES, move
from paramgraph.capture.weave.norms import NORMS, normalisation
from paramgraph.capture.weave.numbering import same_factors
from paramgraph.capture.weave.parameters import attach, fresh_piece, leaves_of, table
from paramgraph.capture.weave.reading import as_hidden
from paramgraph.capture.weave.records import Constant, Group, Hidden, Input, Param, Strand
from paramgraph.capture.weave.reductions import reduction, same_neurons
from paramgraph.capture.weave.runs import Memory, renumbered, span_of
from paramgraph.capture.weave.tables import table_lookup
from paramgraph.structure import NeuronKind

__all__ = ["weave"]


_UNROLLED = 4  # how often an operation of a loop gets neurons of its own
_WINDOW = 6  # operations before and after that tell one loop from another
_REDUCTIONS = {
    *("mean", "sum", "prod", "amax", "amin", "any", "all", "logsumexp", "nansum", "std", "var"),
    *("var_mean", "std_mean", "linalg_vector_norm", "norm", "nanmean"),
}
_WRITES = {
    *("copy", "index_put", "_index_put_impl", "_unsafe_index_put", "scatter", "scatter_add"),
    *("index_add", "index_copy", "slice_scatter", "select_scatter", "masked_scatter"),
    *("scatter_reduce", "_scatter_reduce", "index_reduce"),
}
_ENTRYWISE = {
    *("hardswish", "log_sigmoid_forward", "gelu", "_prelu_kernel", "prelu", "where", "masked_fill"),
    *("add", "sub", "mul", "div", "rsub"),
}


def weave(run: Inference, axis_groups: Groups) -> Loom:
    """Neuron groups and edge blocks of all runs."""
    span = span_of(run)
    later = [renumbered(one, run, span * (n + 1)) for n, one in enumerate(run.others)]
    runs = [run, *later]
    loom = Loom(run, axis_groups, span)
    _start_parameters(loom, run.tape)
    memory = Memory() if later else None
    seen: dict[object, list[TapeEntry]] = {}
    for one in runs:
        loom.start_run(one)
        _walk(loom, one, memory, seen)
    _finish_outputs(loom, runs)
    _attach_rest(loom)
    return loom


def _start_parameters(loom: Loom, tape: Tape) -> None:
    """Parameters as they are, in all their parts."""
    for name in loom.axis_groups.used:
        for member in loom.axis_groups.parameter(name)[2] or (name,):
            ref = tape.parameters[member]
            loom.strands[ref.number] = tuple(
                fresh_piece(loom, name, part, axes)
                for part, axes in enumerate(loom.partition(ref).axes)
            )


def _walk(
    loom: Loom, run: Inference, memory: Memory | None, seen: dict[object, list[TapeEntry]]
) -> None:
    """All operations of one run, in order."""
    names = {
        run.tape.parameters[member].number: name
        for name in loom.axis_groups.used
        for member in loom.axis_groups.parameter(name)[2] or (name,)
    }
    signs = [_signature(entry, names) for entry in run.entries]
    if memory is not None:
        memory.start_run()
    for place, entry in enumerate(run.entries):
        key = None
        if memory is not None:
            key = memory.recall(loom, entry)
            if key is None:
                continue
        window = (tuple(signs[max(place - _WINDOW, 0) : place + _WINDOW + 1]), signs[place])
        before = seen.setdefault(window, [])
        before.append(entry)
        if len(before) <= _UNROLLED or not _repeat(loom, entry, before[_UNROLLED - 1]):
            _apply(loom, entry)
        if memory is not None:
            memory.keep(loom, entry, key)


def _signature(entry: TapeEntry, names: dict[int, str]) -> object:
    """What an operation has in common with the same one in another turn of a loop."""
    read = tuple(names[ref.number] for ref in entry_refs(entry.args) if ref.number in names)
    shapes = tuple(ref.shape for ref in entry.outputs if ref is not None)
    return entry.operation, entry.module, read, shapes


def _repeat(loom: Loom, entry: TapeEntry, first: TapeEntry) -> bool:
    """Take an operation of a loop as one turn before: the graph does not grow with the time."""
    outs = [ref for ref in entry.outputs if ref is not None]
    olds = [ref for ref in first.outputs if ref is not None]
    for ref, old in zip(outs, olds, strict=True):
        if old.number not in loom.strands:
            return False
        if ref.number in loom.run.constants or ref.number in loom.run.data:
            return False
        if len(loom.partition(ref)) != len(loom.strands[old.number]):
            return False
    for ref, old in zip(outs, olds, strict=True):
        # Nothing may join a group that others read already.
        loom.strands[ref.number] = tuple(
            replace(s, owned=False) if isinstance(s, Hidden) else s
            for s in loom.strands[old.number]
        )
    return True


def _apply(loom: Loom, entry: TapeEntry) -> None:
    name = entry.operation.removeprefix("aten.")
    outs = [ref for ref in entry.outputs if ref is not None]
    if not outs or name in FACTORIES:
        for ref in outs:
            if ref.number not in loom.run.constants:
                loom.strands[ref.number] = (Constant(),) * len(loom.partition(ref))
        return
    values = [
        strand
        for ref in entry_refs(entry.args)
        for strand in loom.strands.get(ref.number) or (loom.strand(ref),)
    ]
    if all(isinstance(value, Constant | Input) for value in values):
        is_data = any(isinstance(value, Input) for value in values)
        for ref in outs:
            if ref.number not in loom.run.constants:
                strand: Strand = Input(ref.number, ref.shape) if is_data else Constant()
                loom.strands[ref.number] = (strand,) * len(loom.partition(ref))
        return
    if name in MOVES:
        move(loom, entry)
    elif name in PRODUCTS:
        contraction(loom, entry)
    elif name in NORMS:
        normalisation(loom, entry)
    elif name in _REDUCTIONS or (name in ("max", "min") and entry.args.get("other") is None):
        reduction(loom, entry)
    elif name in ("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax"):
        step = name.removeprefix("_").removeprefix("safe_")
        same_neurons(loom, entry, keeps_bias=False, step=step)
    elif name in SPATIAL:
        pads = entry.args.get("padding", 0)
        pads = any(pads) if isinstance(pads, list | tuple) else bool(pads)
        # Zeros at the border enter the average: a bias in front of it is not a bias behind it.
        same_neurons(loom, entry, keeps_bias="max" not in name and not ("pool" in name and pads))
    elif name == "glu":
        gated(loom, entry)
    elif name in ("embedding", "index", "index_select", "gather", "take_along_dim"):
        table_lookup(loom, entry)
    elif name in _WRITES or entry.operation == ALIASED:
        written(loom, entry)
    elif name in _ENTRYWISE or entry.is_pointwise:
        elementwise(loom, entry)
    else:
        generic(loom, entry)


def _finish_outputs(loom: Loom, runs: Sequence[Inference]) -> None:
    """Who computes the outputs."""
    ends: dict[tuple[int, int], dict[int, Group]] = {}
    entry = TapeEntry("output", {}, (), "", False)
    for run in runs:
        loom.start_run(run)
        for place, ref in enumerate(run.tape.outputs):
            for block, value in enumerate(loom.strands.get(ref.number, ())):
                if isinstance(value, Input | Constant):
                    continue
                here = loom.present(loom.partition(ref).axes[block])
                group = loom.read(as_hidden(loom, value, here, entry))
                ends.setdefault((place, block), {})[id(group)] = group
    for groups in ends.values():
        group = next(iter(groups.values()))
        if len(groups) > 1:
            # Each run has computed it in another way: neurons that depend on all of them.
            senders, group = list(groups.values()), loom.new_group(entry, group.factors)
            group.chain = ()
            for sender in senders:
                same = same_factors(sender.factors, group.factors)
                loom.skip(sender, group) if same else loom.flow(sender, group)
        group.kind = NeuronKind.OUTPUT


def _attach_rest(loom: Loom) -> None:
    """Parameters that no operation has placed: joined with the groups that fit them best."""
    for name in loom.axis_groups.used:
        for part, axes in enumerate(loom.parameter_blocks(name)):
            if (name, part) in loom.claimed:
                continue
            value = fresh_piece(loom, name, part, axes)
            entry = TapeEntry("rest", {}, (), name.rpartition(".")[0], False)
            _place(loom, value, entry)


def _place(loom: Loom, value: Param, entry: TapeEntry) -> None:
    piece = value.pieces[0]
    have = {id(leaf) for leaf in leaves_of(loom, piece)}

    def score(group: Group) -> tuple[int, int]:
        own = {id(f) for f in group.factors}
        return (len(own) if own and own <= have else 0, 0)

    group = max(loom.groups, key=score, default=None)
    if group is None or score(group)[0] == 0 or group.kind is NeuronKind.INPUT:
        made = table(loom, piece, (), entry)
        made.chain = made.chain or ()
        return
    attach(loom, piece, None, group, entry)
