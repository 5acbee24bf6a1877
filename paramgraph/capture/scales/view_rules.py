"""Scale rules for operations that rearrange, cut and join."""

from __future__ import annotations

import itertools
import math

import torch

from paramgraph.capture.axis_rules.registry import operand, output
from paramgraph.capture.scales.boxes import MisfitError, row_major
from paramgraph.capture.scales.flow import Flow, Scaled, Values
from paramgraph.capture.scales.registry import scale_rule
from paramgraph.capture.tape import TapeEntry

__all__: list[str] = []


@scale_rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias")
def _reshape(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Entries keep their order."""
    ref, out = operand(entry, "self"), output(entry)
    if flow.run.tape.dtypes[ref.number] != flow.run.tape.dtypes[out.number]:
        raise MisfitError
    return [flow.read(flow.of(ref), flow.layout(out), row_major(out.shape))]


@scale_rule(
    *("t", "transpose", "permute", "numpy_T", "movedim", "expand", "select", "slice", "unbind"),
    *("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"),
    *("unfold", "diagonal"),
)
def _view(flow: Flow, entry: TapeEntry) -> list[Values]:
    """A view; what its strides are is asked of PyTorch."""
    return [_viewed(flow, entry, number) for number in range(len(entry.outputs))]


def _viewed(flow: Flow, entry: TapeEntry, number: int) -> Values:
    ref, out = operand(entry, "self"), output(entry, number)
    operation = entry.operation.removeprefix("aten.").removeprefix("unsafe_")
    packet = getattr(torch.ops.aten, operation)
    others = {name: value for name, value in entry.args.items() if name != "self"}
    result = packet(torch.empty(ref.shape, device="meta"), **others)
    view = result if isinstance(result, torch.Tensor) else result[number]
    if view.shape != out.shape:
        raise MisfitError
    return flow.read(flow.of(ref), flow.layout(out), view.stride(), int(view.storage_offset()))


@scale_rule("cat", "concat", "stack")
def _cat(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Each tensor is written to its place."""
    out = output(entry)
    layout, strides = flow.layout(out), row_major(out.shape)
    dim = entry.args["dim"] % len(out.shape)
    is_new = entry.operation == "aten.stack"
    steps = [s for axis, s in enumerate(strides) if not is_new or axis != dim]
    found: list[Values] = []
    begin = 0
    for ref in entry.args["tensors"]:
        if ref.shape == (0,):
            continue
        length = 1 if is_new else ref.shape[dim]
        if math.prod(ref.shape):
            found.append(flow.write(flow.of(ref), layout, steps, begin * strides[dim]))
        begin += length
    return [flow.equal(*found)]


@scale_rule("constant_pad_nd")
def _pad(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, out, pad = operand(entry, "self"), output(entry), entry.args["pad"]
    if any(width < 0 for width in pad):
        raise MisfitError
    layout, strides = flow.layout(out), row_major(out.shape)
    offset = sum(pad[2 * i] * strides[-1 - i] for i in range(len(pad) // 2))
    values = flow.write(flow.of(ref), layout, strides, offset)
    return [values if entry.args.get("value", 0) == 0 else flow.equal(values, flow.none(layout))]


@scale_rule("repeat", "repeat_interleave")
def _repeat(flow: Flow, entry: TapeEntry) -> list[Values]:
    """The result seen with the repetitions on axes of their own."""
    ref, out = operand(entry, "self"), output(entry)
    times = entry.args["repeats"]
    is_inner = entry.operation == "aten.repeat_interleave"
    if is_inner:
        if not isinstance(times, int) or entry.args.get("dim") is None:
            raise MisfitError
        dim = entry.args["dim"] % len(ref.shape)
        times = [times if axis == dim else 1 for axis in range(len(ref.shape))]
    missing = len(times) - len(ref.shape)
    old = [1] * missing + list(ref.shape)
    steps = [0] * missing + row_major(ref.shape)
    pairs = [(n, s) if is_inner else (s, n) for s, n in zip(times, old, strict=True)]
    shape = list(itertools.chain.from_iterable(pairs))
    strides = list(itertools.chain.from_iterable((s, 0) if is_inner else (0, s) for s in steps))
    key = ("repeated", entry.position)
    layout = flow.geometry.made(key, lambda: flow.layout(out).reshaped(shape))
    return [flow.read(flow.of(ref), layout, strides)]


@scale_rule("select_scatter", "slice_scatter")
def _scatter_view(flow: Flow, entry: TapeEntry) -> list[Values]:
    """The entries of a view are replaced."""
    start, source, out = (operand(entry, "self"), operand(entry, "src"), output(entry))
    operation = entry.operation.removeprefix("aten.").removesuffix("_scatter")
    others = {n: v for n, v in entry.args.items() if n not in ("self", "src")}
    view = getattr(torch.ops.aten, operation)(torch.empty(start.shape, device="meta"), **others)
    layout = flow.layout(out)
    values = flow.write(flow.of(source), layout, view.stride(), view.storage_offset())
    return [flow.equal(flow.onto(flow.of(start), layout), values)]


@scale_rule("view_as_real")
def _pairs(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, out = operand(entry, "self"), output(entry)
    return [flow.read(flow.of(ref), flow.layout(out), [*row_major(ref.shape), 0])]


@scale_rule("view_as_complex")
def _complex(flow: Flow, entry: TapeEntry) -> list[Values]:
    ref, out = operand(entry, "self"), output(entry)
    return [flow.write(flow.of(ref), flow.layout(out), [*row_major(out.shape), 0])]


@scale_rule("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im")
def _positions(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Some axes become positions or the reverse; channels pass.

    Either the source or the result has channels times window on one axis.
    """
    ref, out = operand(entry, "self"), output(entry)
    source, layout = flow.of(ref), flow.layout(out)
    name, strides = entry.operation.removeprefix("aten."), row_major(out.shape)
    if name in ("pixel_shuffle", "col2im"):
        axis = len(ref.shape) - (3 if name == "pixel_shuffle" else 2)
        channels = out.shape[-3]
        shape = (*ref.shape[:axis], channels, ref.shape[axis] // channels, *ref.shape[axis + 1 :])
        wide = flow.geometry.made(
            ("windows", entry.position), lambda: source.layout.reshaped(shape)
        )
        steps = [*strides[:-2], 0, *[0] * len(ref.shape[axis + 1 :])]
        return [flow.write(Scaled(wide, source.values), layout, steps)]
    axis = len(ref.shape) - 3
    window = math.prod(out.shape[axis : axis + 1]) // ref.shape[axis]
    return [flow.write(source, layout, [*strides[:axis], window * strides[axis], 0, 0])]


@scale_rule("channel_shuffle", "native_channel_shuffle")
def _shuffle(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Groups of channels, transposed."""
    ref, out = operand(entry, "self"), output(entry)
    groups, strides = entry.args["groups"], row_major(ref.shape)
    inner = ref.shape[1] // groups
    shape = (ref.shape[0], inner, groups, *ref.shape[2:])
    steps = [strides[0], strides[1], inner * strides[1], *strides[2:]]
    key = ("shuffled", entry.position)
    layout = flow.geometry.made(key, lambda: flow.layout(out).reshaped(shape))
    return [flow.read(flow.of(ref), layout, steps)]
