"""Runs a network and writes down what it computes, number by number, as a ``ScalarGraph``.

A shadow of each storage holds the node of each number. Views need no rule (they share the
storage), and operations that only move numbers are run on the nodes themselves. The others have a
rule below or are broken down by PyTorch's own decompositions. Nothing of ``paramgraph`` is used:
this is the oracle that its capture is compared with. Every result is compared with the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scalar_graph import ScalarGraph
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["Shadow"]

MOVES = {
    *("clone", "_to_copy", "index", "index_select", "embedding", "gather", "cat", "stack", "copy"),
    *("repeat", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("where", "_unsafe_view", "native_channel_shuffle", "lift_fresh_copy", "constant_pad_nd"),
    *("diagonal_copy", "tril", "triu", "masked_fill", "contiguous", "_reshape_copy"),
}
CONSTANTS = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones"}
CONSTANTS |= {
    "new_empty",
    "new_full",
    "argmax",
    "gt",
    "lt",
    "eq",
    "ge",
    "le",
    "_local_scalar_dense",
}
VIEWS = {"detach", "alias", "_reshape_alias", "lift_fresh"}
VIEWS |= {"transpose_", "t_", "squeeze_", "unsqueeze_", "as_strided_"}
# Functions of one number, whatever their other (constant) arguments are.
POINTWISE = {
    *("relu", "tanh", "sigmoid", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "abs", "gelu"),
    *("silu", "softplus", "hardswish", "hardtanh", "leaky_relu", "elu", "erf", "reciprocal"),
    *("clamp", "clamp_min", "hardsigmoid", "mish", "pow", "floor"),
}


class Shadow(TorchDispatchMode):
    """Records a scalar graph; enter it and run a network in float64 without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = ScalarGraph()
        self._memory: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # so that no storage is used for two tensors

    def register(self, name: str, tensor: Tensor) -> None:
        """Make the numbers of a tensor leaves: an input or a parameter."""
        values = tensor.reshape(-1).tolist()
        nodes = [self.graph.leaf(name, i, value) for i, value in enumerate(values)]
        self._write(tensor, torch.tensor(nodes).reshape(tensor.shape))

    def nodes(self, tensor: Tensor) -> Tensor:
        """The node of each number; a tensor that was not computed from leaves is constant."""
        memory = self._memory.get(tensor.untyped_storage()._cdata)
        if memory is None:
            values = tensor.double().reshape(-1).tolist()
            constants = [self.graph.constant(value) for value in values]
            return torch.tensor(constants, dtype=torch.long).reshape(tensor.shape)
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _write(self, tensor: Tensor, nodes: Tensor) -> None:
        self._alive.append(tensor)
        key = tensor.untyped_storage()._cdata
        if key not in self._memory:
            length = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._memory[key] = torch.zeros(length, dtype=torch.long)
        view = self._memory[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        view.copy_(nodes)

    def _is_shadowed(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self._alive += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        writes = func._schema.is_mutable
        if name in CONSTANTS or not any(self._is_shadowed(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        if func.is_view or name in VIEWS:
            return func(*args, **kwargs)
        name = name.removesuffix("_") if writes else name
        rule = _RULES.get(name)
        if rule is None and name in MOVES:
            rule = _moved(func if not writes else getattr(torch.ops.aten, name).default)
        if rule is None and name in POINTWISE:
            rule = _pointwise(f"{name} {args[1:]} {kwargs}")
        if rule is None:
            with self:
                result = decomposition_table.get(func, func.decompose)(*args, **kwargs)
            if result is NotImplemented or writes:
                raise NotImplementedError(f"the oracle has no rule for {func}")
            return result
        if writes:
            self._start_memory(args[0])
        is_plain = name in MOVES or name == "index_add"  # indices and masks are what they are

        def nodes_of(tensor: Tensor) -> Tensor:
            keep = is_plain and not tensor.is_floating_point()
            return tensor if keep else self.nodes(tensor).clone()

        before = tree_map_only(Tensor, nodes_of, (args, kwargs))
        result = func(*args, **kwargs)
        real = result if isinstance(result, tuple) else (result,)
        if not real[0].is_floating_point():
            return result
        found = rule(self, real[0], *before[0], **before[1])
        found = found if isinstance(found, tuple) else (found,)
        for tensor, nodes in zip(real, found, strict=False):  # the others are indices
            self._write(tensor, nodes)
            self._assert_equal(func, tensor, nodes)
        return result

    def _start_memory(self, tensor: Tensor) -> None:
        """Give a tensor that is written to a memory of what it holds until now."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memory:
            whole = tensor.new_empty(0).set_(storage)
            self._write(whole, self.nodes(whole))

    def _assert_equal(self, func: Any, real: Tensor, nodes: Tensor) -> None:
        values = [self.graph.values[node] for node in nodes.reshape(-1).tolist()]
        computed = torch.tensor(values, dtype=real.dtype).reshape(real.shape)
        assert torch.allclose(computed, real, rtol=1e-9, atol=1e-12), f"wrong rule for {func}"

    def each(self, function: Callable[..., int], *tensors: Tensor) -> Tensor:
        """A function of nodes, for each place of tensors that are broadcast together."""
        wide = torch.broadcast_tensors(*tensors)
        columns = [tensor.reshape(-1).tolist() for tensor in wide]
        results = [function(*row) for row in zip(*columns, strict=True)]
        return torch.tensor(results, dtype=torch.long).reshape(wide[0].shape)

    def along(self, function: Callable[[list[int]], int], nodes: Tensor, num_kept: int) -> Tensor:
        """A function of all nodes behind the first ``num_kept`` axes."""
        length = math.prod(nodes.shape[num_kept:])
        rows = nodes.reshape(math.prod(nodes.shape[:num_kept]), length).tolist()
        results = [function(row) for row in rows]
        return torch.tensor(results, dtype=torch.long).reshape(nodes.shape[:num_kept])

    def multiply(self, *tensors: Tensor) -> Tensor:
        return self.each(lambda *factors: self.graph.multiply(factors), *tensors)

    def wrap(self, value: Any) -> Tensor:
        """A number that is not a tensor."""
        return value if isinstance(value, Tensor) else torch.tensor(self.graph.constant(value))


Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _moved(func: Any) -> Rule:
    def rule(shadow: Shadow, real: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name, listed = func._schema.name.removeprefix("aten::"), list(args)
        if name in ("masked_fill", "constant_pad_nd") and not isinstance(listed[-1], Tensor):
            listed += [0.0] if name == "constant_pad_nd" and len(listed) == 2 else []
            listed[-1] = shadow.graph.constant(listed[-1])
        if name == "_to_copy":
            return listed[0]
        if name == "copy":
            return listed[1].expand(listed[0].shape)
        if name in ("tril", "triu"):
            kept = getattr(torch.ones_like(real), name)(*listed[1:]).bool()
            return torch.where(kept, listed[0], shadow.wrap(0.0))
        kwargs.pop("memory_format", None)
        return func(*listed, **kwargs)

    return rule


def _pointwise(text: str) -> Rule:
    def rule(shadow: Shadow, real: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
        if text.startswith(("pow (2,)", "pow (2.0,)")):
            return shadow.multiply(x, x)
        values = real.reshape(-1).tolist()
        pairs = zip(x.reshape(-1).tolist(), values, strict=True)
        results = [shadow.graph.function(text, node, value) for node, value in pairs]
        return torch.tensor(results).reshape(real.shape)

    return rule


@_rule("add")
def _add(shadow: Shadow, _: Tensor, x: Any, y: Any, alpha: float = 1) -> Tensor:
    y = shadow.multiply(shadow.wrap(y), shadow.wrap(alpha))
    return shadow.each(lambda *terms: shadow.graph.add(terms), shadow.wrap(x), y)


@_rule("sub")
def _subtract(shadow: Shadow, real: Tensor, x: Any, y: Any, alpha: float = 1) -> Tensor:
    return _add(shadow, real, x, y, -alpha)


@_rule("rsub")
def _subtract_from(shadow: Shadow, real: Tensor, x: Any, y: Any, alpha: float = 1) -> Tensor:
    return _add(shadow, real, y, x, -alpha)


@_rule("mul")
def _multiply(shadow: Shadow, _: Tensor, x: Any, y: Any) -> Tensor:
    return shadow.multiply(shadow.wrap(x), shadow.wrap(y))


@_rule("neg")
def _negate(shadow: Shadow, _: Tensor, x: Tensor) -> Tensor:
    return shadow.multiply(x, shadow.wrap(-1.0))


@_rule("div")
def _divide(shadow: Shadow, _: Tensor, x: Any, y: Any) -> Tensor:
    graph = shadow.graph

    def inverse(node: int) -> int:
        return graph.function("inverse", node, 1 / graph.values[node])

    return shadow.multiply(shadow.wrap(x), shadow.each(inverse, shadow.wrap(y)))


@_rule("maximum")
def _maximum(shadow: Shadow, _: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return shadow.each(lambda *pair: shadow.graph.maximum(pair), x, y)


@_rule("_prelu_kernel")
def _prelu(shadow: Shadow, real: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """``relu(x) - slope * relu(-x)``."""
    graph = shadow.graph

    def relu(node: int) -> int:
        return graph.function("relu", node, max(graph.values[node], 0.0))

    up = shadow.each(relu, x)
    down = shadow.multiply(shadow.each(relu, _negate(shadow, real, x)), slope)
    return _subtract(shadow, real, up, down)


def _last(nodes: Tensor, dim: Any) -> tuple[Tensor, int]:
    """Axes to be reduced moved to the end, and how many others there are."""
    dims = range(nodes.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    gone = sorted({d % nodes.ndim for d in dims})
    kept = [d for d in range(nodes.ndim) if d not in gone]
    return nodes.permute(*kept, *gone), len(kept)


@_rule("sum")
def _sum(shadow: Shadow, real: Tensor, x: Tensor, dim: Any = None, *_: Any, **__: Any) -> Tensor:
    return shadow.along(shadow.graph.add, *_last(x, dim)).reshape(real.shape)


@_rule("amax", "max")
def _largest(
    shadow: Shadow, real: Tensor, x: Tensor, dim: Any = None, *_: Any, **__: Any
) -> Tensor:
    return shadow.along(shadow.graph.maximum, *_last(x, dim)).reshape(real.shape)


@_rule("mean")
def _mean(shadow: Shadow, real: Tensor, x: Tensor, dim: Any = None, *_: Any, **__: Any) -> Tensor:
    count = shadow.wrap(real.numel() / x.numel())
    return shadow.multiply(_sum(shadow, real, x, dim), count)


@_rule("mm", "bmm")
def _matmul(shadow: Shadow, _: Tensor, x: Tensor, y: Tensor) -> Tensor:
    products = shadow.multiply(x.unsqueeze(-2), y.transpose(-1, -2).unsqueeze(-3))
    return shadow.along(shadow.graph.add, products, products.ndim - 1)


@_rule("addmm", "baddbmm")
def _addmm(
    shadow: Shadow,
    real: Tensor,
    bias: Tensor,
    x: Tensor,
    y: Tensor,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    product = shadow.multiply(_matmul(shadow, real, x, y), shadow.wrap(alpha))
    return _add(shadow, real, product, bias, beta)


@_rule("convolution")
def _convolution(
    shadow: Shadow,
    _: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    sides, zero = range(2, x.ndim), shadow.graph.constant(0.0)
    stride, padding, dilation = (
        [*(list(n) * len(sides))][: len(sides)] for n in (stride, padding, dilation)
    )
    if transposed:  # a plain convolution of the spread-out input with the flipped kernel
        for side, step in zip(sides, stride, strict=True):
            spread = x.new_full((*x.shape[:side], x.shape[side], step, *x.shape[side + 1 :]), zero)
            spread.select(side + 1, 0).copy_(x)
            x = spread.flatten(side, side + 1)
            x = x.narrow(side, 0, x.shape[side] - step + 1)
        extents = [d * (weight.shape[s] - 1) for s, d in zip(sides, dilation, strict=True)]
        padding = [extent - p for extent, p in zip(extents, padding, strict=True)]
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        weight, stride = weight.flip(tuple(sides)), [1] * len(sides)
        assert not any(output_padding), "the oracle has no output padding"
    pads = [n for p in reversed(padding) for n in (p, p)]
    x = torch.nn.functional.pad(x, pads, value=zero)
    for side, step, gap in zip(sides, stride, dilation, strict=True):
        extent = gap * (weight.shape[side] - 1) + 1
        x = x.unfold(side, extent, step)[..., ::gap]
    # x: batch, channels, places, kernel; weight: out, channels of the group, kernel
    x = x.flatten(-len(sides)).unflatten(1, (groups, -1))
    weight = weight.flatten(2).unflatten(0, (groups, -1))
    num_places = x.ndim - 4
    x = x.movedim(2, -2)[:, :, None]  # batch, group, 1, places, channels, kernel
    wide = weight.reshape(1, *weight.shape[:2], *[1] * num_places, *weight.shape[2:])
    result = shadow.along(shadow.graph.add, shadow.multiply(x, wide), 3 + num_places).flatten(1, 2)
    if bias is None:
        return result
    return _add(shadow, result, result, bias.reshape(-1, *[1] * num_places))


@_rule("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(
    shadow: Shadow, _: Tensor, x: Tensor, kernel: list[int], stride: Any = (), *rest: Any
) -> Tensor:
    assert not rest, "the oracle has no padded or dilated pooling"
    num_axes = x.ndim
    for side, size in enumerate(kernel, start=num_axes - len(kernel)):
        x = x.unfold(side, size, (stride or kernel)[side - num_axes])
    return shadow.along(shadow.graph.maximum, x, num_axes)


@_rule("index_add")
def _index_add(shadow: Shadow, _: Tensor, x: Tensor, dim: int, index: Tensor, y: Tensor) -> Tensor:
    lists: list[list[Tensor]] = [[row] for row in x.unbind(dim)]
    for place, row in zip(index.tolist(), y.unbind(dim), strict=True):
        lists[place].append(row)
    rows = [shadow.along(shadow.graph.add, torch.stack(r, -1), x.ndim - 1) for r in lists]
    return torch.stack(rows, dim)


@_rule("topk")
def _topk(shadow: Shadow, real: Tensor, x: Tensor, *_: Any) -> Tensor:
    """The values; which ones are chosen is taken as given."""
    values = torch.tensor([shadow.graph.values[n] for n in x.reshape(-1).tolist()])
    order = values.reshape(x.shape).topk(real.shape[-1], dim=-1).indices
    return x.gather(-1, order)


@_rule("var_mean", "var")
def _variance(
    shadow: Shadow,
    real: Tensor,
    x: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    _: bool = False,
    *,
    correction: Any = None,
    **__: Any,
) -> tuple[Tensor, Tensor]:
    correction = unbiased if correction is None else correction
    moved, num_kept = _last(x, dim)
    rows = moved.reshape(*moved.shape[:num_kept], -1)
    mean = _mean(shadow, rows[..., :1], rows, -1)  # keeps the last axis
    centred = _subtract(shadow, real, rows, mean)
    total = shadow.along(shadow.graph.add, shadow.multiply(centred, centred), num_kept)
    variance = shadow.multiply(total, shadow.wrap(1 / (rows.shape[-1] - correction)))
    return variance.reshape(real.shape), mean.reshape(real.shape)


@_rule("_trilinear")
def _trilinear(shadow: Shadow, real: Tensor, *arguments: Any) -> Tensor:
    tensors, expanded, summed = list(arguments[:3]), arguments[3:6], arguments[6]
    for number, dims in enumerate(expanded):
        for dim in dims:
            tensors[number] = tensors[number].unsqueeze(dim)
    return _sum(shadow, real, shadow.multiply(*tensors), summed)


@_rule("_cdist_forward")
def _distance(shadow: Shadow, real: Tensor, x: Tensor, y: Tensor, *_: Any) -> Tensor:
    difference = _subtract(shadow, real, x.unsqueeze(-2), y.unsqueeze(-3))
    squares = shadow.multiply(difference, difference)
    total = shadow.along(shadow.graph.add, squares, squares.ndim - 1)
    return _pointwise("sqrt")(shadow, real, total)
