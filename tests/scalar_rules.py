"""What each operation computes, in sums, products, maxima and functions of one number.

A rule gets the shadow, the real result and the operation's arguments with nodes for tensors, and
returns the nodes of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scalar_shadow import Shadow, pointwise, rule_for
from torch import Tensor

__all__: list[str] = []  # importing this module is what makes the rules known


@rule_for("add")
def _add(shadow: Shadow, _: Tensor, x: Any, y: Any, alpha: float = 1) -> Tensor:
    y = shadow.multiply(shadow.wrap(y), shadow.wrap(alpha))
    return shadow.each(lambda *terms: shadow.graph.add(terms), shadow.wrap(x), y)


@rule_for("sub")
def _subtract(shadow: Shadow, real: Tensor, x: Any, y: Any, alpha: float = 1) -> Tensor:
    return _add(shadow, real, x, y, -alpha)


@rule_for("rsub")
def _subtract_from(shadow: Shadow, real: Tensor, x: Any, y: Any, alpha: float = 1) -> Tensor:
    return _add(shadow, real, y, x, -alpha)


@rule_for("mul")
def _multiply(shadow: Shadow, _: Tensor, x: Any, y: Any) -> Tensor:
    return shadow.multiply(shadow.wrap(x), shadow.wrap(y))


@rule_for("neg")
def _negate(shadow: Shadow, _: Tensor, x: Tensor) -> Tensor:
    return shadow.multiply(x, shadow.wrap(-1.0))


@rule_for("div")
def _divide(shadow: Shadow, _: Tensor, x: Any, y: Any) -> Tensor:
    graph = shadow.graph

    def inverse(node: int) -> int:
        return graph.function("inverse", node, 1 / graph.values[node])

    return shadow.multiply(shadow.wrap(x), shadow.each(inverse, shadow.wrap(y)))


@rule_for("maximum")
def _maximum(shadow: Shadow, _: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return shadow.each(lambda *pair: shadow.graph.maximum(pair), x, y)


@rule_for("_prelu_kernel")
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


@rule_for("sum")
def _sum(shadow: Shadow, real: Tensor, x: Tensor, dim: Any = None, *_: Any, **__: Any) -> Tensor:
    return shadow.along(shadow.graph.add, *_last(x, dim)).reshape(real.shape)


@rule_for("amax", "max")
def _largest(
    shadow: Shadow, real: Tensor, x: Tensor, dim: Any = None, *_: Any, **__: Any
) -> Tensor:
    return shadow.along(shadow.graph.maximum, *_last(x, dim)).reshape(real.shape)


@rule_for("mean")
def _mean(shadow: Shadow, real: Tensor, x: Tensor, dim: Any = None, *_: Any, **__: Any) -> Tensor:
    count = shadow.wrap(real.numel() / x.numel())
    return shadow.multiply(_sum(shadow, real, x, dim), count)


@rule_for("mm", "bmm")
def _matmul(shadow: Shadow, _: Tensor, x: Tensor, y: Tensor) -> Tensor:
    products = shadow.multiply(x.unsqueeze(-2), y.transpose(-1, -2).unsqueeze(-3))
    return shadow.along(shadow.graph.add, products, products.ndim - 1)


@rule_for("addmm", "baddbmm")
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


@rule_for("convolution")
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


@rule_for("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(
    shadow: Shadow, _: Tensor, x: Tensor, kernel: list[int], stride: Any = (), *rest: Any
) -> Tensor:
    assert not rest, "the oracle has no padded or dilated pooling"
    num_axes = x.ndim
    for side, size in enumerate(kernel, start=num_axes - len(kernel)):
        x = x.unfold(side, size, (stride or kernel)[side - num_axes])
    return shadow.along(shadow.graph.maximum, x, num_axes)


@rule_for("index_add")
def _index_add(shadow: Shadow, _: Tensor, x: Tensor, dim: int, index: Tensor, y: Tensor) -> Tensor:
    lists: list[list[Tensor]] = [[row] for row in x.unbind(dim)]
    for place, row in zip(index.tolist(), y.unbind(dim), strict=True):
        lists[place].append(row)
    rows = [shadow.along(shadow.graph.add, torch.stack(r, -1), x.ndim - 1) for r in lists]
    return torch.stack(rows, dim)


@rule_for("topk")
def _topk(shadow: Shadow, real: Tensor, x: Tensor, *_: Any) -> Tensor:
    """The values; which ones are chosen is taken as given."""
    values = torch.tensor([shadow.graph.values[n] for n in x.reshape(-1).tolist()])
    order = values.reshape(x.shape).topk(real.shape[-1], dim=-1).indices
    return x.gather(-1, order)


@rule_for("var_mean", "var")
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


@rule_for("_trilinear")
def _trilinear(shadow: Shadow, real: Tensor, *arguments: Any) -> Tensor:
    tensors, expanded, summed = list(arguments[:3]), arguments[3:6], arguments[6]
    for number, dims in enumerate(expanded):
        for dim in dims:
            tensors[number] = tensors[number].unsqueeze(dim)
    return _sum(shadow, real, shadow.multiply(*tensors), summed)


@rule_for("_cdist_forward")
def _distance(shadow: Shadow, real: Tensor, x: Tensor, y: Tensor, *_: Any) -> Tensor:
    difference = _subtract(shadow, real, x.unsqueeze(-2), y.unsqueeze(-3))
    squares = shadow.multiply(difference, difference)
    total = shadow.along(shadow.graph.add, squares, squares.ndim - 1)
    return pointwise("sqrt")(shadow, real, total)


@rule_for("cumsum")
def _cumulative(shadow: Shadow, _: Tensor, x: Tensor, dim: int) -> Tensor:
    x = x.movedim(dim, -1)
    ends = range(1, x.shape[-1] + 1)
    sums = [shadow.along(shadow.graph.add, x[..., :end], x.ndim - 1) for end in ends]
    return torch.stack(sums, -1).movedim(-1, dim)
