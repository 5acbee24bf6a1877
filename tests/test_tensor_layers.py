"""Layers on tensors of a chain: which maps they span, slow twins, equivariance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.nn.nft import WeightSpaceAttention
from paramgraph.nn.tensor_layers import (
    Axes,
    EquivariantLinear,
    chain_axes,
    copies_in_channels,
    fold,
    free_axes,
    unfold,
)
from paramgraph.nn.tensor_stacks import end_waves, with_end_waves

Sizes = dict[int, int]


# --- the linear layer


def permuted(
    tensors: Sequence[Tensor], axes: Sequence[Axes], orders: dict[int, list[int]]
) -> list[Tensor]:
    """Tensors ``[B, *axes, c]`` with their neurons in another order."""
    found = []
    for tensor, row in zip(tensors, axes, strict=True):
        for place, axis in enumerate(row):
            if axis in orders:
                tensor = tensor.index_select(1 + place, torch.tensor(orders[axis]))
        found.append(tensor)
    return found


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def unit_inputs(axes: Sequence[Axes], sizes: Sizes, channels: Sequence[int]) -> list[Tensor]:
    """Each entry of each tensor 1 in turn, the others 0: ``[num_entries, *axes, c]``."""
    shapes = [[sizes[a] for a in row] + [c] for row, c in zip(axes, channels, strict=True)]
    counts = [math.prod(shape) for shape in shapes]
    parts = torch.eye(sum(counts)).split(counts, dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def group(sizes: Sizes, fixed: Sizes) -> list[dict[int, list[int]]]:
    """All permutations of the free axes."""
    free = [axis for axis in sizes if axis not in fixed]
    every = itertools.product(*(itertools.permutations(range(sizes[a])) for a in free))
    return [{a: list(o) for a, o in zip(free, orders, strict=True)} for orders in every]


def maps_of(
    axes: Sequence[Axes], sizes: Sizes, fixed: Sizes, channels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """For each parameter of a layer alone at 1 the matrix of the layer, and its constant."""
    copies = copies_in_channels(axes, fixed)
    dims = [n * c for n, c in zip(copies, channels, strict=True)]
    layer = EquivariantLinear(free_axes(axes, fixed), dims, dims)
    inputs = unit_inputs(axes, sizes, channels)
    zeros = [torch.zeros_like(t[:1]) for t in inputs]

    def apply(tensors: Sequence[Tensor]) -> Tensor:
        rows = zip(tensors, axes, strict=True)
        results = layer([fold(tensor, row, fixed) for tensor, row in rows])
        return flat([unfold(r, row, fixed) for r, row in zip(results, axes, strict=True)])

    matrices, constants = [], []
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for parameter in layer.parameters():
            for entry in parameter.reshape(-1).split(1):
                entry.fill_(1.0)
                constant = apply(zeros)[0]
                matrices.append((apply(inputs) - constant).flatten())
                constants.append(constant)
                entry.zero_()
    return torch.stack(matrices), torch.stack(constants)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("widths", "channels", "told_apart"),
    [
        ((2, 3, 2, 2), None, True),
        ((2, 3, 2, 2), None, False),
        ((1, 3, 3, 1), None, True),
        ((2, 4, 2), None, True),
        ((2, 3, 2), None, False),
        ((2, 3, 2), (2, 3, 1, 1), True),  # kernels of 2 and 3 elements
        ((2, 3, 2), (2, 3, 1, 1), False),
        ((2, 3), None, True),  # one layer: nothing is free
        ((2, 3), None, False),
    ],
)
def test_the_linear_layer_spans_the_commutant(
    widths: tuple[int, ...], channels: tuple[int, ...] | None, told_apart: bool
) -> None:
    """As many independent maps as there are maps that commute, and each of them commutes.

    Averaging over the group projects onto what commutes, so its trace is the dimension.
    """
    axes, sizes = chain_axes(len(widths) - 1), dict(enumerate(widths))
    fixed = {0: widths[0], len(widths) - 1: widths[-1]} if told_apart else {}
    channels = (1,) * len(axes) if channels is None else channels
    inputs = unit_inputs(axes, sizes, channels)
    actions = [flat(permuted(inputs, axes, orders)) for orders in group(sizes, fixed)]
    # tr of X -> g X g^-1 is tr(g) ** 2, for matrices of permutations.
    commutant = sum(float(g.trace()) ** 2 for g in actions) / len(actions)
    invariants = sum(float(g.trace()) for g in actions) / len(actions)
    matrices, constants = maps_of(axes, sizes, fixed, channels)
    is_linear = matrices.abs().amax(1) > 0
    assert int(torch.linalg.matrix_rank(matrices)) == round(commutant)
    assert int(torch.linalg.matrix_rank(constants)) == round(invariants)
    # A basis: no map is there twice, where no free axis has length 1.
    assert int(is_linear.sum()) == round(commutant)
    assert int((~is_linear).sum()) == round(invariants)
    square = matrices.reshape(len(matrices), len(actions[0]), -1)
    for g in actions:
        torch.testing.assert_close(g @ square, square @ g, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_an_axis_of_length_one_costs_no_map() -> None:
    """The mean over one neuron is the neuron: maps coincide, but none is missing."""
    axes, sizes = chain_axes(3), {0: 2, 1: 1, 2: 3, 3: 2}
    fixed = {0: 2, 3: 2}
    inputs = unit_inputs(axes, sizes, [1] * 6)
    actions = [flat(permuted(inputs, axes, orders)) for orders in group(sizes, fixed)]
    commutant = sum(float(g.trace()) ** 2 for g in actions) / len(actions)
    matrices, _ = maps_of(axes, sizes, fixed, [1] * 6)
    assert int(torch.linalg.matrix_rank(matrices)) == round(commutant)


def slow_linear(layer: EquivariantLinear, tensors: Sequence[Tensor]) -> list[Tensor]:
    """One network, one entry at a time: a sum over all entries of all tensors."""
    results = []
    for target, row in enumerate(layer.axes):
        result = torch.zeros(*tensors[target].shape[:-1], layer.out_dims[target])
        for entry in itertools.product(*map(range, result.shape[:-1])):
            at = dict(zip(row, entry, strict=True))
            for subset, rows, linear in zip(layer.subsets, layer.members, layer.maps, strict=True):
                assert isinstance(linear, nn.Linear)
                if target not in rows:
                    continue
                before = [sum(layer.out_dims[n] for n in rows[:k]) for k in range(len(rows))]
                first = before[rows.index(target)]
                weight = linear.weight[first : first + layer.out_dims[target]]
                column = 0
                for source in rows:
                    block = weight[:, column : column + layer.in_dims[source]]
                    column += layer.in_dims[source]
                    seen = [
                        tensors[source][other]
                        for other in itertools.product(*map(range, tensors[source].shape[:-1]))
                        if all(
                            n == at[a]
                            for a, n in zip(layer.axes[source], other, strict=True)
                            if a in subset
                        )
                    ]
                    stacked = torch.stack(seen)
                    pooled = stacked.mean(0) if layer.reduction == "mean" else stacked.amax(0)
                    result[entry] += block @ pooled
                if linear.bias is not None:
                    result[entry] += linear.bias[first : first + layer.out_dims[target]]
        results.append(result)
    return results


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_the_linear_layer_equals_its_slow_twin(reduction: str) -> None:
    axes = free_axes(chain_axes(3), {0: 2})
    sizes = {1: 3, 2: 4, 3: 2}
    layer = EquivariantLinear(axes, [2, 3, 1, 2, 1, 3], [1, 2, 3, 2, 2, 1], reduction=reduction)
    assert isinstance(layer.maps[0].bias, Tensor)
    nn.init.normal_(layer.maps[0].bias)  # it starts at 0, where a lost one would not be seen
    tensors = [
        torch.randn(2, *(sizes[a] for a in row), dim)
        for row, dim in zip(axes, layer.in_dims, strict=True)
    ]
    with torch.no_grad():
        fast = layer(tensors)
        for number in range(2):
            slow = slow_linear(layer, [tensor[number] for tensor in tensors])
            for a, b in zip(fast, slow, strict=True):
                torch.testing.assert_close(a[number], b, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", ["mean", "max", "attention"])
def test_layers_are_equivariant_and_notice_a_wrong_permutation(make: str) -> None:
    axes, sizes = chain_axes(3), {0: 2, 1: 5, 2: 4, 3: 3}
    layer: nn.Module = (
        WeightSpaceAttention(8, 2)
        if make == "attention"
        else EquivariantLinear(axes, [8] * 6, [8] * 6, reduction=make)
    )
    tensors = [torch.randn(3, *(sizes[a] for a in row), 8) for row in axes]
    orders = {axis: torch.randperm(size).roll(1).tolist() for axis, size in sizes.items()}
    moved = permuted(tensors, axes, orders)
    with torch.no_grad():
        expected, got = flat(permuted(layer(tensors), axes, orders)), flat(layer(moved))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        for number in range(len(axes)):  # one tensor alone is moved otherwise
            other = {axis: [*order[1:], order[0]] for axis, order in orders.items()}
            wrong = [*moved[:number], *permuted(tensors, axes, other)[number : number + 1]]
            wrong += moved[number + 1 :]
            assert float((flat(layer(wrong)) - expected).abs().max()) > 1e-3


# --- attention


@pytest.mark.usefixtures("float64")
def test_attention_equals_its_slow_twin() -> None:
    """One token, one score, one entry at a time, for one network."""
    num_heads, dim, sizes = 2, 6, {0: 2, 1: 4, 2: 3}
    axes = chain_axes(2)
    layer = WeightSpaceAttention(dim, num_heads)
    tensors = [torch.randn(1, *(sizes[a] for a in row), dim) for row in axes]
    single = [tensor[0] for tensor in tensors]
    per_head = dim // num_heads

    def parts(linear: nn.Linear, vectors: Tensor, number: int) -> list[Tensor]:
        """Queries, keys and values of each head: ``[N, d]`` each."""
        every = torch.stack([linear(vector) for vector in vectors])
        start = number * per_head
        return [p[:, start : start + per_head] for p in every.split(dim, dim=1)]

    def attend(axis: int, kind: str, place: int) -> Tensor:
        """What a token over the neurons of an axis receives ``[N, dim]``."""
        tokens: list[tuple[str, int, nn.Linear, Tensor]] = []
        if axis < 2:
            tokens += [("row", r, layer.rows, single[axis][r]) for r in range(sizes[axis + 1])]
        if axis > 0:
            weight = single[axis - 1]
            tokens += [("column", s, layer.columns, weight[:, s]) for s in range(sizes[axis - 1])]
            tokens.append(("bias", 0, layer.columns, single[2 + axis - 1]))
        mine = next(t for t in tokens if t[:2] == (kind, place))
        heads = []
        for number in range(num_heads):
            query = parts(mine[2], mine[3], number)[0]
            keys_values = [parts(t[2], t[3], number)[1:] for t in tokens]
            scale = math.sqrt(sizes[axis] * per_head)
            scores = torch.stack([(query * key).sum() / scale for key, _ in keys_values])
            weights = scores.softmax(0)
            heads.append(sum(w * v for w, (_, v) in zip(weights, keys_values, strict=True)))
        return torch.cat([torch.as_tensor(head) for head in heads], dim=1)

    def from_means(entry: Tensor) -> Tensor:
        means = [tensor.reshape(-1, dim).mean(0) for tensor in single]
        heads = []
        for number in range(num_heads):
            cut = slice(number * per_head, (number + 1) * per_head)
            query = layer.entries(entry)[cut]
            keys = [layer.means(mean)[:dim][cut] for mean in means]
            values = torch.stack([layer.means(mean)[dim:][cut] for mean in means])
            scores = torch.stack([query @ key / math.sqrt(per_head) for key in keys])
            heads.append(scores.softmax(0) @ values)
        return torch.cat(heads)

    with torch.no_grad():
        results = layer(tensors)
        for number in range(2):
            for r, s in itertools.product(range(sizes[number + 1]), range(sizes[number])):
                entry = torch.cat(
                    [
                        attend(number, "row", r)[s],
                        attend(number + 1, "column", s)[r],
                        from_means(single[number][r, s]),
                    ]
                )
                torch.testing.assert_close(
                    results[number][0, r, s], layer.out(entry), rtol=0, atol=1e-12
                )
            for r in range(sizes[number + 1]):
                entry = torch.cat(
                    [
                        torch.zeros(dim),
                        attend(number + 1, "bias", 0)[r],
                        from_means(single[2 + number][r]),
                    ]
                )
                torch.testing.assert_close(
                    results[2 + number][0, r], layer.out(entry), rtol=0, atol=1e-12
                )


# --- parts


def test_a_fixed_axis_keeps_its_size() -> None:
    with pytest.raises(pg.BatchError, match=r"axis 0 of a chain has size 3, but .* made for 2"):
        fold(torch.zeros(1, 4, 3, 1), (1, 0), {0: 2})


def test_waves_number_any_end() -> None:
    waves = end_waves(3000, 16, torch.zeros(1, dtype=torch.float64))
    distances = torch.cdist(waves, waves) + 10 * torch.eye(3000)
    assert float(distances.min()) > 1e-2
    one = with_end_waves([torch.zeros(1, 3, 2, 1), torch.zeros(1, 3, 1)], 4)
    assert [t.shape[-1] for t in one] == [9, 5]
