"""Nodes and edges of the parameter encoding against the fixtures of the code of Lim et al. 2024.

The counts are those that the released code of graph metanetworks tests itself with. They are for
its own modules, so each network is written out here. Three conventions of that code differ from
what the networks compute; the tests of these count what differs, exactly:

- its attention has one layer of middle neurons for queries, keys, values and their mixture, and no
  heads; permuting queries with keys alone would then be no relabelling of the graph;
- the mean of a set's inputs is the input node itself there, and an input of its own here;
- three planes are added where they reach a feature node; here the sum is a neuron.
"""

from typing import Any

import pytest
import torch
from networks import Wired, vectors
from torch import Tensor, nn
from torch.nn import functional

import paramgraph as pg
from paramgraph.explicit import LinkKind


def _counts(network: nn.Module, inputs: Tensor) -> tuple[int, int, int]:
    """Nodes, edges and parameters, with residuals but without other dataflow, as in the paper."""
    graph = pg.capture(network.eval(), inputs)
    explicit = graph.expand("parameter", dataflow=False)
    return explicit.num_nodes, explicit.num_edges, graph.num_parameters


def _basic_block(num_inputs: int, num_outputs: int) -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        residual = n.norm2(n.conv2(n.norm1(n.conv1(x)).relu()))
        return (residual + (x if num_inputs == num_outputs else n.shortcut(x))).relu()

    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(num_inputs, num_outputs, 3, padding=1, bias=False),
        "norm1": nn.BatchNorm2d(num_outputs),
        "conv2": nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False),
        "norm2": nn.BatchNorm2d(num_outputs),
    }
    if num_inputs != num_outputs:
        projection = nn.Conv2d(num_inputs, num_outputs, 1, bias=False)
        parts["shortcut"] = nn.Sequential(projection, nn.BatchNorm2d(num_outputs))
    return Wired(wiring, **parts)


@pytest.mark.parametrize(
    ("num_outputs", "expected"), [(1, (7, 23, 22)), (2, (13, 70, 68))], ids=["same", "wider"]
)
def test_basic_block(num_outputs: int, expected: tuple[int, int, int]) -> None:
    assert _counts(_basic_block(1, num_outputs), vectors(2, 1, 6, 6)) == expected


def test_linear_and_layer_norm() -> None:
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.LayerNorm(3), nn.Linear(3, 1))
    assert _counts(network, vectors(4, 2)) == (9, 16, 16)


def test_convolution_and_batch_norm() -> None:
    network = nn.Sequential(
        nn.Conv1d(1, 3, 2, bias=False),
        nn.BatchNorm1d(3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    assert _counts(network, vectors(2, 1, 5)) == (9, 20, 20)


class _SelfAttention(nn.Module):
    """x + attention(x), with one layer for each of the four maps."""

    def __init__(self, width: int, num_heads: int = 1) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        maps = (self.query, self.key, self.value)
        heads = [m(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for m in maps]
        mixed = functional.scaled_dot_product_attention(*heads)
        return x + self.out(mixed.transpose(1, 2).flatten(-2))


def _num_attention_nodes(width: int, num_heads: int) -> int:
    """Nodes that we have beyond theirs.

    Their ``width`` middle nodes are our mixture; queries, keys, values and the scores of each head
    are neurons, too.
    """
    return 3 * width + num_heads


@pytest.mark.parametrize(("width", "num_heads"), [(1, 1), (4, 1), (6, 3)])
def test_self_attention(width: int, num_heads: int) -> None:
    network = nn.Sequential(
        nn.Linear(1, width, bias=False), nn.LayerNorm(width), _SelfAttention(width, num_heads)
    )
    num_parameters = width + 2 * width + 4 * (width * width + width)
    theirs = (1 + width + 2 + 2 * width + 4, num_parameters + width, num_parameters)
    if width == 1:
        assert theirs == (10, 12, 11)
    num_nodes, *others = _counts(network, vectors(2, 3, 1))
    assert tuple(others) == theirs[1:]
    assert num_nodes == theirs[0] + _num_attention_nodes(width, num_heads)


class _FeedForward(nn.Module):
    def __init__(self, width: int, num_hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, num_hidden), nn.Linear(num_hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


@pytest.mark.parametrize(("width", "num_heads"), [(1, 1), (4, 2)])
def test_transformer_of_one_layer(width: int, num_heads: int) -> None:
    network = nn.Sequential(
        nn.Linear(1, width),
        nn.LayerNorm(width),
        _SelfAttention(width, num_heads),
        nn.LayerNorm(width),
        _FeedForward(width, 4 * width),
        nn.Linear(width, 1),
    )
    num_parameters = sum(p.numel() for p in network.parameters())
    num_nodes = (1 + width + 1) + 2 + (2 * width + 4) + 2 + (5 * width + 2) + 2
    theirs = (num_nodes, num_parameters + 2 * width, num_parameters)
    if width == 1:
        assert theirs == (22, 31, 29)
    num_nodes, *others = _counts(network, vectors(2, 3, 1))
    assert tuple(others) == theirs[1:]
    assert num_nodes == theirs[0] + _num_attention_nodes(width, num_heads)


class _EquivariantSet(nn.Module):
    """Deep Sets (Zaheer et al. 2017): a map of each element, a map of the mean."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.own = nn.Linear(num_inputs, num_outputs)
        self.mean = nn.Linear(num_inputs, num_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.mean(x.mean(1, keepdim=True))


@pytest.mark.parametrize("num_inputs", [1, 3])
def test_equivariant_set_layers(num_inputs: int) -> None:
    first, last = _EquivariantSet(num_inputs, 2), _EquivariantSet(2, 1)
    network = Wired(
        lambda n, x: n.last(n.norm(n.first(x).transpose(1, 2)).transpose(1, 2)),
        first=first,
        norm=nn.GroupNorm(1, 2),
        last=last,
    )
    num_parameters = 4 * num_inputs + 2 + 4 + 5
    theirs = (num_inputs + 2 + 1 + 2 + 1 + 1, num_parameters, num_parameters)
    if num_inputs == 1:
        assert theirs == (8, 15, 15)
    # The mean of the inputs is computed from the inputs alone, so it is a second set of inputs.
    ours = (theirs[0] + num_inputs, *theirs[1:])
    assert _counts(network, vectors(2, 3, num_inputs)) == ours


def _tri_plane(size: int, num_features: int) -> nn.Module:
    """Features of three planes at a point, and its coordinates, into a linear layer."""

    def wiring(n: Any, points: Tensor) -> Tensor:
        pairs = torch.stack([points[:, [0, 1]], points[:, [0, 2]], points[:, [1, 2]]])
        sampled = functional.grid_sample(n.planes, pairs[:, None], align_corners=True)
        return n.linear(torch.cat([points, sampled[:, :, 0].sum(0).t()], dim=1))

    planes = nn.Parameter(vectors(3, num_features, size, size))
    return Wired(wiring, planes=planes, linear=nn.Linear(3 + num_features, 1))


@pytest.mark.parametrize(("size", "num_features"), [(2, 2), (4, 3)])
def test_tri_plane(size: int, num_features: int) -> None:
    num_parameters = 3 * size**2 * num_features + (3 + num_features) + 1
    theirs = (3 + 3 * size**2 + num_features + 1 + 1, num_parameters, num_parameters)
    # The sum over the planes is a layer of neurons; so is the place of the coordinates in the
    # concatenation: one neuron at three positions, since it cannot be permuted.
    ours = (theirs[0] + num_features + 1, *theirs[1:])
    assert _counts(_tri_plane(size, num_features), vectors(5, 3)) == ours


def test_tri_plane_with_one_feature() -> None:
    # A feature axis of length 1 cannot be told from none: capture takes the planes for the neurons
    # and the positions in a plane for the rows. 4 rows, 3 inputs and their place, 3 neurons before
    # and after the lookup, their sum, the output, its bias: 17, where Lim et al. have 18.
    assert _counts(_tri_plane(2, 1), vectors(5, 3)) == (17, 17, 17)


def test_kinds_of_a_transformer() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), _SelfAttention(4, 2)).eval()
    explicit = pg.capture(network, vectors(2, 3, 2)).expand("parameter")
    counts = {kind: int((explicit.edge_kind == kind.index).sum()) for kind in LinkKind}
    assert counts[LinkKind.LINEAR] == 2 * 4 + 4 * 4 * 4
    assert counts[LinkKind.BIAS] == 5 * 4
    assert counts[LinkKind.GAIN] == counts[LinkKind.SHIFT] == 4
    assert counts[LinkKind.SKIP] == 4
    # Queries and keys to scores, 4 each; scores to the mixture, 4.
    assert counts[LinkKind.ATTENTION] == 12
    assert counts[LinkKind.FLOW] == 4
