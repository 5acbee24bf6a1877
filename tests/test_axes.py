"""Axes: the bookkeeping itself, then networks on which a careless reading would be wrong.

Each network must be read right (``pg.verify`` passes and what is free is as worked out) or be
refused with a ``CaptureError`` that names operation and module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import Wired, randomise, vectors
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.capture.axes import Leaf, Wild, axis_size, resolve
from paramgraph.capture.groups import Tokens, _company
from paramgraph.capture.reshaping import regroup
from paramgraph.capture.unification import merged, unify
from paramgraph.testing import check_graph

# ----------------------------------------------------------------------------------- bookkeeping


def test_unify_joins_leaves_and_keeps_the_oldest_name() -> None:
    old, new = Leaf("old", 6), Leaf("new", 6)
    unify((new,), (old,), "here")
    assert resolve((new,)) == (old,)
    assert old.frozen is None


def test_unify_splits_the_larger_leaf() -> None:
    whole, outer, inner = Leaf("whole", 6), Leaf("outer", 2), Leaf("inner", 3)
    unify((whole,), (outer, inner), "here")
    assert resolve((outer, inner)) == resolve((whole,))
    assert [axis_size((factor,)) for factor in resolve((whole,))] == [2, 3]


def test_unify_with_a_fixed_size_freezes_only_the_leaf_it_meets() -> None:
    leaf, other = Leaf("leaf", 3), Leaf("other", 2)
    joined = Leaf("joined", 2)
    unify((other, leaf), (joined, 3), "met pixels")
    assert leaf.frozen == "meets inputs or positions in met pixels"
    assert resolve((joined,)) == (other,)
    assert other.frozen is None


def test_a_frozen_leaf_freezes_what_it_joins_and_its_parts() -> None:
    frozen, other = Leaf("frozen", 4), Leaf("other", 4)
    frozen.freeze("first reason")
    frozen.freeze("second reason")
    unify((other,), (frozen,), "here")
    regroup([(other,)], (2, 2), "aten.view")
    assert [leaf.frozen for leaf in resolve((other,)) if isinstance(leaf, Leaf)] == [
        "first reason",
        "first reason",
    ]


def test_a_leaf_that_is_split_while_it_is_listed_keeps_its_parts() -> None:
    older, leaf, outer, inner = (
        Leaf("older", 6),
        Leaf("leaf", 6),
        Leaf("outer", 2),
        Leaf("inner", 3),
    )
    unify((leaf, leaf), (outer, inner, older), "here")
    assert resolve((older,)) == resolve((leaf,)) == resolve((outer, inner))
    assert [axis_size((factor,)) for factor in resolve((older,))] == [2, 3]


def test_a_single_index_is_compared_with_nothing() -> None:
    one, first, second = Leaf("one", 1), Leaf("first", 3), Leaf("second", 3)
    unify((one, first), (second,), "here")
    assert resolve((second,)) == (first,)


def test_unify_freezes_axes_that_cut_through_each_other() -> None:
    one, two, three = Leaf("a", 6), Leaf("b", 4), Leaf("c", 2)
    unify((one,), (two, three), "aten.mm in module 'm'")
    assert {leaf.root().frozen for leaf in (one, two)} == {"cut across by aten.mm in module 'm'"}


def test_regroup_has_no_result_where_a_reshape_cuts_through_an_axis() -> None:
    assert regroup([(4,), (Leaf("a", 6),)], (3, 8), "aten.view in module 'm'") is None
    assert regroup([(Leaf("a", 3),), (Leaf("b", 4),)], (4, 3), "aten.view in module 'm'") is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_regroup_keeps_every_index(sizes: list[int], data: st.DataObject) -> None:
    """Merging axes and splitting them again gives each factor back in its place."""
    axes = [(Leaf(f"leaf{i}", size),) for i, size in enumerate(sizes)]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)))) | {0, len(sizes)})
    bounds = list(itertools.pairwise(cuts))
    dealt = regroup(axes, [math.prod(sizes[a:b]) for a, b in bounds], "aten.view")
    assert dealt is not None
    assert [axis_size(axis) for axis in dealt] == [math.prod(sizes[a:b]) for a, b in bounds]
    back = regroup(dealt, sizes, "aten.view")
    assert back is not None
    for before, after in zip(axes, back, strict=True):
        assert [f for f in after if axis_size((f,)) > 1] == [f for f in before if f.size > 1]


# --------------------------------------------------------------------- read right, not carelessly


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _small(wiring: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> nn.Module:
    """Linear(3, 5) as ``a``, Linear(5, 2) as ``o``, and further parts."""
    layers: dict[str, Any] = {"a": nn.Linear(3, 5), "o": nn.Linear(5, 2), **parts}
    return randomise(Wired(wiring, **layers), 0)


def _image(wiring: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> nn.Module:
    """A convolution without bias as ``a``, Linear(4, 2) as ``o``, and further parts."""
    layers: dict[str, Any] = {"a": nn.Conv2d(1, 4, 3, bias=False), "o": nn.Linear(4, 2), **parts}
    return randomise(Wired(wiring, **layers), 0)


def _stack(*layers: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(*layers), 0)


def _reads_then_adds_in_place(n: Any, x: Tensor) -> Tensor:
    hidden = x @ n.w
    return n.p(hidden) + n.o(torch.relu(hidden.add_(n.b)))


def _half(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(3, 5), nn.Linear(5, 2)
        self.k: Tensor
        self.register_buffer("k", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        result = self.o(torch.sin(self.a(x) * self.k))
        self.k.add_(1)
        return result


VECTOR, SQUARE, IMAGE = vectors(4, 3), vectors(5, 3), vectors(3, 1, 6, 6)
relu = torch.relu

_SINGLE = {"a": nn.Linear(3, 1), "b": nn.Linear(3, 1), "o": nn.Linear(1, 2)}
# name: network, inputs, number of permutations, activations of the hidden groups
READ: dict[str, tuple[nn.Module, Any, int, list[str]]] = {
    "bias_after_read": (
        _small(_reads_then_adds_in_place, w=parameter(3, 5), b=parameter(5), p=nn.Linear(5, 2)),
        *(VECTOR, 120, ["", "relu", ""]),
    ),
    "gain_that_is_also_a_bias": (
        _small(lambda n, x: n.o(relu(n.a(x) + n.g) * n.g), g=parameter(5)),
        *(VECTOR, 120, ["", "relu", ""]),
    ),
    "tied_transposed": (
        _small(lambda n, x: n.o(relu(relu(n.a(x)) @ n.w) @ n.w.t()), w=parameter(5, 7)),
        *(VECTOR, 120 * 5040, ["relu", "relu", ""]),
    ),
    "tied_transposed_linear": (
        _small(lambda n, x: n.o(n.a(x) @ n.w @ n.w.t()), w=parameter(5, 5)),
        *(VECTOR, 120 * 120, ["", "", ""]),
    ),
    "tied_under_two_activations": (
        _small(lambda n, x, y: n.o(relu(n.a(x))) + n.o(torch.tanh(n.a(y)))),
        *((VECTOR, VECTOR + 1), 120, ["relu", "tanh", ""]),
    ),
    "max_pool_between_convolution_and_skip": (
        _image(
            lambda n, x: (lambda h: n.o(relu(_half(n.c(h)) + _half(h)).mean((2, 3))))(n.a(x)),
            c=nn.Conv2d(4, 4, 3, padding=1),
        ),
        *(IMAGE, 24, ["", "", "relu"]),
    ),
    "bias_after_max_pool": (
        _image(lambda n, x: n.o(relu(_half(n.a(x)) + n.b).mean((2, 3))), b=parameter(4, 1, 1)),
        *(IMAGE, 24, ["", "relu"]),
    ),
    "bias_after_sum": (
        _image(lambda n, x: n.o(relu(n.a(x).sum((2, 3)) + n.b)), b=parameter(4)),
        *(IMAGE, 24, ["", "relu"]),
    ),
    "bias_after_padding": (
        _image(
            lambda n, x: n.o(relu(F.pad(n.a(x), (1, 1)) + n.b).mean((2, 3))), b=parameter(4, 1, 1)
        ),
        *(IMAGE, 24, ["", "relu"]),
    ),
    "scaled_skip": (
        _small(lambda n, x: n.o(relu(torch.add(n.a(x), n.b(x), alpha=-2))), b=nn.Linear(3, 5)),
        *(VECTOR, 120, ["", "relu"]),
    ),
    "square": (_small(lambda n, x: n.o(n.a(x).pow(2))), VECTOR, 120, ["pow(2)"]),
    "exponential": (_small(lambda n, x: n.o(2.0 ** n.a(x))), VECTOR, 120, ["rpow(2)"]),
    "product_with_itself": (
        _small(lambda n, x: (lambda h: n.o(h * h))(n.a(x))),
        *(VECTOR, 120, ["mul[|]"]),
    ),
    "difference_of_batch_halves": (
        _small(lambda n, x: (lambda h: n.o((h[:2] - h[2:]).abs()))(n.a(x))),
        *(VECTOR, 120, ["", "abs"]),
    ),
    "average_and_maximum": (
        _image(lambda n, x: (lambda h: n.o(h.mean((2, 3)) + h.amax((2, 3))))(n.a(x))),
        *(IMAGE, 24, ["", ""]),
    ),
    "batch_as_large_as_the_width": (_small(lambda n, x: n.o(relu(n.a(x)))), SQUARE, 120, ["relu"]),
    "einsum": (
        _small(lambda n, x: n.o(relu(torch.einsum("bi,oi->bo", x, n.w))), w=parameter(5, 3)),
        *(VECTOR, 120, ["relu"]),
    ),
    "two_norms_of_one_input": (
        _small(
            lambda n, x: n.o(relu(n.a(n.m(x)))) + n.o(relu(n.a(n.n(x)))),
            **{"m": nn.BatchNorm1d(3), "n": nn.BatchNorm1d(3)},
        ),
        *(vectors(3, 3), 120, ["", "", "relu", "", "relu", ""]),
    ),
    "norm_of_the_input_without_affine": (
        _stack(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)),
        *(vectors(3, 3), 120, ["", "relu"]),
    ),
    "input_read_along_two_axes": (
        _small(
            lambda n, x: n.o(relu(x @ n.w)) + n.o(relu((n.v @ x).t())),
            **{"w": parameter(3, 5), "v": parameter(5, 3)},
        ),
        *(vectors(3, 3), 120, ["relu", "relu", ""]),
    ),
    "buffer_that_changes_while_running": (
        randomise(_Counter(), 0),
        *(VECTOR, 120, ["mul(3) sin"]),
    ),
    "widths_of_one": (
        _stack(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), *(nn.Linear(1, 1), nn.Tanh()) * 2),
        *(vectors(3, 1, 1, 1), 1, ["relu", "tanh"]),
    ),
    "without_a_batch": (
        _stack(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)),
        *(vectors(3), 120, ["relu"]),
    ),
    "single_neuron_in_a_sequence": (
        _small(lambda n, x: n.o(relu(n.a(x) + n.b(x))), **_SINGLE),
        *(vectors(2, 5, 3), 1, ["", "relu"]),
    ),
    "float64": (
        _stack(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double(),
        *(VECTOR.double(), 120, ["relu"]),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_hazardous_network_is_read_right(name: str) -> None:
    network, inputs, num_permutations, activations = READ[name]
    graph = pg.capture(network, inputs)
    result = pg.verify(network, graph, inputs, num_draws=8)
    assert result.max_error < 1e-10, graph.summary()
    assert math.exp(graph.log_group_size()) == pytest.approx(num_permutations)
    hidden = [g.activation_text for g in graph.neuron_groups if g.kind.value == "hidden"]
    assert hidden == activations
    state = network.state_dict()
    written = graph.write_back(graph.features(state))
    assert all(torch.equal(value[0], state[key]) for key, value in written.items())
    statistics = {key for key in state if "running" in key}
    parameters = {key for key, _ in network.named_parameters(remove_duplicate=False)}
    assert set(written) == (parameters | statistics) - set(graph.unused_parameters)


def test_an_input_that_is_read_along_two_axes_is_two_groups() -> None:
    network, inputs, *_ = READ["input_read_along_two_axes"]
    groups = pg.capture(network, inputs).neuron_groups
    assert [group.name for group in groups if group.kind.value == "input"] == ["input", "input.1"]


# ---------------------------------------------------------------------- once refused, and refused


def _zero_two_columns(n: Any, x: Tensor) -> Tensor:
    hidden = n.a(x)
    hidden[:, :2] = 0
    return n.o(hidden)


def _relu_of_a_view(n: Any, x: Tensor) -> Tensor:
    hidden = n.a(x)
    hidden.view(-1).relu_()
    return n.o(hidden)


def _branches_on_activations(n: Any, x: Tensor) -> Tensor:
    hidden = n.a(x)
    return n.o(relu(hidden)) if hidden.sum() > 0 else n.o(hidden)


def _numpy_weight(n: Any, x: Tensor) -> Tensor:
    return n.o(x @ torch.from_numpy(n.a.weight.detach().numpy()).t())


class _Standardised(nn.Module):
    """A hand-written normalisation whose statistics happen to be all equal at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(3, 5), nn.Linear(5, 2)
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x) - self.mean))


def _mixed_axes(n: Any, x: Tensor) -> Tensor:
    return n.o(relu(n.a(x) + n.b(x).t()))


SEQUENCE = vectors(2, 5, 3)
BIAS = {"b": parameter(5)}
COLUMN = {"b": parameter(5, 1)}
# name: network, inputs, number of permutations
ONCE_REFUSED: dict[str, tuple[nn.Module, Any, int]] = {
    "in_place_on_a_view": (_small(_relu_of_a_view), VECTOR, 120),
    "in_place_on_columns": (_small(_zero_two_columns), VECTOR, 12),
    "item": (_small(lambda n, x: n.o(n.a(x)) * n.s.item(), s=parameter(1)), VECTOR, 120),
    "branch": (_small(_branches_on_activations), VECTOR, 120),
    "weight_row_as_bias": (_small(lambda n, x: n.o(relu(n.a(x) + n.o.weight[0]))), VECTOR, 120),
    "weight_sum": (_small(lambda n, x: n.o(n.a(x)) * n.a.weight.sum()), VECTOR, 120),
    "clamped_weight": (
        _small(lambda n, x: n.o(x @ n.w.clamp(0, 1)), w=parameter(3, 5)),
        VECTOR,
        120,
    ),
    "weight_as_output": (_small(lambda n, x: (n.o(n.a(x)), n.a.weight.t())), VECTOR, 1),
    "stacked_weights": (
        _small(lambda n, x: n.o(torch.bmm(x, n.w)), w=parameter(2, 3, 5)),
        SEQUENCE,
        120,
    ),
    "bias_along_the_batch": (
        _small(lambda n, x: n.o(n.a(x)) + n.b, b=parameter(2, 1)),
        vectors(2, 3),
        120,
    ),
    "gain_along_the_batch": (_small(lambda n, x: n.a(x) * n.b, **COLUMN), SQUARE, 1),
    "bias_along_the_image": (_image(lambda n, x: n.a(x) + n.b, b=parameter(4)), IMAGE, 1),
    "bias_that_repeats_neurons": (
        _small(lambda n, x: n.a(x) + n.b, b=parameter(7, 1, 1), a=nn.Linear(3, 1)),
        VECTOR,
        1,
    ),
    "constant_that_repeats_neurons": (
        _small(lambda n, x: n.o(n.a(x) * torch.ones(1, 5)), a=nn.Linear(3, 1)),
        VECTOR,
        14400,
    ),
    "neurons_added_across": (_small(_mixed_axes, b=nn.Linear(3, 5)), SQUARE, 1),
    "column_broadcast_over_neurons": (
        _small(lambda n, x: n.o(n.a(x) + n.b(x)), b=nn.Linear(3, 1)),
        SQUARE,
        120,
    ),
    "input_broadcast_over_neurons": (_small(lambda n, x: n.o(n.a(x) + x[:, :1])), SQUARE, 120),
    "scaled_bias": (_small(lambda n, x: n.o(torch.add(n.a(x), n.b, alpha=2)), **BIAS), VECTOR, 120),
    "subtracted_bias": (_small(lambda n, x: n.o(n.a(x) - n.b), **BIAS), VECTOR, 120),
    "scalar_parameter": (_small(lambda n, x: n.o(n.a(x) * n.s), s=parameter(1)), VECTOR, 120),
    "gate": (
        _small(lambda n, x: n.o(n.a(x) * torch.sigmoid(n.b(x))), b=nn.Linear(3, 5)),
        VECTOR,
        120,
    ),
    "floor_division": (
        _small(lambda n, x: n.o(torch.div(n.a(x), 0.1, rounding_mode="floor"))),
        VECTOR,
        120,
    ),
    "integers": (_small(lambda n, x: n.o(n.a(x).long().float())), VECTOR, 120),
    "own_statistics": (randomise(_Standardised(), 0), VECTOR, 1),
    "equal_own_statistics": (_Standardised(), VECTOR, 1),
    "mean_over_channels": (
        _small(lambda n, x: (lambda h: n.o(h - h.mean(1, keepdim=True)))(n.a(x))),
        VECTOR,
        120,
    ),
    "channel_shuffle": (
        _image(
            lambda n, x: n.c(n.a(x).view(3, 2, 2, 4, 4).transpose(1, 2).reshape(3, 4, 4, 4)),
            c=nn.Conv2d(4, 4, 1),
        ),
        IMAGE,
        8,
    ),
    "slice_of_channels": (_small(lambda n, x: n.o(n.a(x)[:, :3]), o=nn.Linear(3, 2)), VECTOR, 12),
    "product_of_other_positions": (
        _small(lambda n, x: (lambda h: n.o(h[:2] * h[2:]))(n.a(x))),
        VECTOR,
        120,
    ),
    "permuted_channels": (_small(lambda n, x: n.o(n.a(x)[:, [1, 0, 2, 3, 4]])), VECTOR, 1),
    "misaligned_view": (_small(lambda n, x: n.o(n.a(x).view(5, 4)), o=nn.Linear(4, 2)), VECTOR, 1),
    "grouped_convolution": (_stack(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), IMAGE, 4),
    "transposed_convolution": (_stack(nn.ConvTranspose2d(1, 4, 3)), IMAGE, 1),
    "attention": (
        _small(
            lambda n, x: n.o(n.m(n.a(x), n.a(x), n.a(x), need_weights=False)[0]),
            **{"a": nn.Linear(3, 4), "m": nn.MultiheadAttention(4, 2), "o": nn.Linear(4, 2)},
        ),
        SEQUENCE,
        18432,
    ),
    "lstm": (_small(lambda n, x: n.m(x)[0], m=nn.LSTM(3, 4)), SEQUENCE, 1),
    "gru": (_small(lambda n, x: n.m(x)[0], m=nn.GRU(3, 4)), SEQUENCE, 1),
    "embedding": (_stack(nn.Embedding(5, 4), nn.Linear(4, 2)), torch.arange(5), 24),
    "learned_slope": (_stack(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 2)), VECTOR, 120),
    "batch_statistics": (
        _stack(nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=False)),
        VECTOR,
        1,
    ),
    "crossing_group_norms": (
        _stack(nn.Linear(3, 12), nn.GroupNorm(3, 12), nn.GroupNorm(2, 12)),
        VECTOR,
        1,
    ),
    "root_mean_square_norm": (_stack(nn.Linear(3, 5), nn.RMSNorm(5)), VECTOR, 1),
    "random_mask": (_small(lambda n, x: n.o(F.dropout(n.a(x), 0.5, training=True))), VECTOR, 1),
    "token_mixing": (
        _small(lambda n, x: n.t(n.a(x).transpose(1, 2)), t=nn.Linear(5, 4)),
        SEQUENCE,
        1,
    ),
    "concatenation": (
        _small(lambda n, x: n.o(torch.cat([n.a(x), x], 1)), o=nn.Linear(8, 2)),
        VECTOR,
        120,
    ),
    "gram_matrix": (_small(lambda n, x: (lambda h: h @ h.t())(n.a(x))), VECTOR, 120),
}


@pytest.mark.parametrize("name", ONCE_REFUSED)
def test_a_network_that_the_first_release_refused_is_read(name: str) -> None:
    network, inputs, num_permutations = ONCE_REFUSED[name]
    graph = pg.capture(network, inputs)
    assert math.exp(graph.log_group_size()) == pytest.approx(num_permutations)
    # A function that jumps turns the last bits of float64 into whole numbers.
    tolerance = 1e-6 if name in ("integers", "floor_division") else 1e-10
    report = check_graph(network, inputs, graph=graph, num_seeds=2, tolerance=tolerance)
    # A number that is read from a parameter stands in the name of the activation.
    excused = {"zero weight"} if name == "item" else set()
    broken = [row for row in report.failures if row.law not in excused]
    assert not broken, "\n".join(map(str, broken))


# name: network, inputs, what the message must hold
REFUSED: dict[str, tuple[nn.Module, Any, str]] = {
    "tolist": (
        _small(lambda n, x: n.o(n.a(x)) * n.s.tolist()[0], s=parameter(1)),
        VECTOR,
        "parameter 's' changes the outputs of Wired",
    ),
    "numpy": (_small(_numpy_weight), VECTOR, r"shape \(5, 3\) that shares the memory"),
    "no_parameters": (nn.ReLU(), VECTOR, "no output of the network depends on its parameters"),
    "no_tensor_returned": (_small(lambda n, x: None), VECTOR, "network Wired returned no tensor"),
    "no_tensor_given": (_small(lambda n, x: n.a(x)), (3,), "example_inputs hold no tensor"),
    "wrong_input_shape": (
        _stack(nn.Linear(3, 5)),
        vectors(4, 7),
        r"Sequential failed .* \(4, 7\)\) in module '0': RuntimeError",
    ),
    "lazy": (nn.Sequential(nn.LazyLinear(5)), VECTOR, "'0.weight' of Sequential has no shape yet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_read_is_refused(name: str) -> None:
    network, inputs, match = REFUSED[name]
    with pytest.raises(pg.CaptureError, match=match):
        pg.capture(network, inputs)


def test_a_network_that_holds_results_of_its_own_is_read() -> None:
    network = nn.Linear(3, 5)
    network.cached = network.weight * 2
    assert pg.capture(network, VECTOR).num_parameters == 20


def test_of_two_unified_axes_every_factor_keeps_what_says_most() -> None:
    groups, heads, other = Leaf("groups", 2), Leaf("heads", 3), Leaf("other", 2)
    for first, second in (
        ((groups, Wild(3)), (Wild(2), heads)),
        ((Wild(2), heads), (groups, Wild(3))),
        ((groups, Wild(3)), (other, heads)),  # both name the first factor, one the second
        ((Wild(6),), (groups, heads)),
    ):
        result = merged(first, second, "here")
        assert [leaf.root() for leaf in result if isinstance(leaf, Leaf)] == [
            groups.root(),
            heads.root(),
        ]
    assert groups.root() is other.root()
    assert groups.root().frozen is heads.root().frozen is None


def test_single_neurons_that_meet_stand_once_on_an_axis() -> None:
    one, two = Leaf("one", 1), Leaf("two", 1)
    assert merged((one,), (two,), "here") == (one.root(),)


def test_a_group_depends_on_another_only_where_they_stand_together_on_every_axis() -> None:
    major, minor = Leaf("major", 2), Leaf("minor", 3)
    both, alone = (major, minor), (minor,)
    square: list[Tokens] = [((major, minor), (major, minor))]
    assert set(_company(square)[0][id(minor)]) == {id(major)}
    apart: list[Tokens] = [(both, alone)]  # the second axis has no copies to tell apart
    assert _company(apart)[0][id(minor)] == {}
    crossed: list[Tokens] = [((minor,), (major,), (major,))]  # which of the two would it be?
    assert _company(crossed)[0][id(minor)] == {}
