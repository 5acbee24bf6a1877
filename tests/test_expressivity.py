"""The theory of both papers as tests: weights set by hand make a metanetwork compute what they say.

Message passing can run the network that it reads (Kofinas et al. 2024, appendix B; Lim et al. 2024,
section 2.3), and does what StatNN and the layers of NP-NFN do (Lim et al.). Papers appeal to MLPs
that approximate any function; here each weight is given. All metanetworks are ``GraphMetanetwork``
with ``norm="none"`` and ``standardize=False``; only parameters are set. Gates and products are
built of SiLU in float64:

| what | how | error |
|---|---|---|
| ``z`` | ``silu(z) - silu(-z)`` | none |
| ``z`` if a flag is 1, else 0 | ``silu(z - K (1 - flag)) - silu(-z - K (1 - flag))`` | exp(-K) |
| ``relu(z)`` | ``silu(k z) / k`` | 0.3 / k |
| ``z ** 2`` | ``(silu(d z) + silu(-d z)) * 2 / d ** 2`` | d ** 2 z ** 4 / 12 |
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.batch import Entries
from paramgraph.explicit import LinkKind, NodeKind
from paramgraph.nn.baselines import NUM_STATISTICS, layer_statistics
from paramgraph.nn.gmn import GraphMetanetwork
from paramgraph.nn.tensor_layers import EquivariantLinear, chain_axes
from paramgraph.structure import Activation

SMALL = 1e-5  # the d of squares; sines are linear there, too
STEEP = 1e8  # the k of ReLU
SHUT = 1e3  # the K of gates

pytestmark = pytest.mark.usefixtures("float64")


class ByHand:
    """A ``GraphMetanetwork`` whose weights are 0 until they are set, by way of its state dict."""

    def __init__(self, out_dim: int, **options: Any) -> None:
        self.m = (
            GraphMetanetwork(out_dim, norm="none", standardize=False, **options).double().eval()
        )
        self.state = {name: torch.zeros_like(t) for name, t in self.m.state_dict().items()}
        if "read_spread" in self.state:
            self.state["read_spread"] += 1

    def put(self, name: str, row: int, *terms: tuple[int, float]) -> None:
        """Set entries (column, value) of one row of a linear map."""
        for column, value in terms:
            self.state[f"{name}.weight"][row, column] = value

    def read_weights(self, channel: int) -> None:
        """Let a channel of the edges hold their weight."""
        self.put("link_encoder.lift", 0, (0, SMALL))
        self.put("link_encoder.map", channel, (0, 1 / SMALL))

    def done(self) -> GraphMetanetwork:
        self.m.load_state_dict(self.state)
        return self.m


def relu_mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def captured(network: nn.Sequential) -> pg.ParamGraph:
    first = network[0]
    assert isinstance(first, nn.Linear)
    return pg.capture(network, torch.randn(3, first.in_features))


# --- 1. running the network that is read


def forward_pass(num_layers: int) -> ByHand:
    """Runs any ReLU MLP of up to ``num_layers`` layers, whatever its widths.

    Channels of nodes: 0 what they are from the start (inputs their input, bias nodes 1), 1 what
    they have computed, 2 whether they have a ReLU. Channel 0 of edges: their weight.
    """
    hand = ByHand(
        1,
        level="neuron",
        hidden_dim=4,
        num_layers=num_layers,
        bidirectional=False,
        aggregation="sum",
    )
    hand.read_weights(0)
    hand.state["node_encoder.kind.weight"][NodeKind.BIAS.index, 0] = 1
    hand.state["node_encoder.activation.weight"][Activation.RELU.index, 2] = 1
    product = 1 / (2 * SMALL**2)
    for number in range(num_layers):
        block = f"blocks.{number}"
        # (w + h)^2 - (w - h)^2 = 4 w h
        for unit, (of_weight, of_sender) in enumerate([(1, 1), (-1, -1), (1, -1), (-1, 1)]):
            hand.put(f"{block}.message", unit, (0, of_weight * SMALL))
            from_sender = of_sender * SMALL
            hand.put(f"{block}.message_sender", unit, (0, from_sender), (1, from_sender))
        signs = (1, 1, -1, -1)
        for unit, sign in ((0, 1), (1, -1)):  # relu(z), and relu(-z) unless there is a ReLU
            terms = [(column, sign * s * STEEP * product) for column, s in enumerate(signs)]
            hand.put(f"{block}.node_in", unit, *terms)
        hand.put(f"{block}.node", 1, (2, -SHUT * STEEP))
        hand.put(f"{block}.node", 2, (1, 1))  # what was there before
        hand.put(f"{block}.node", 3, (1, -1))
        hand.put(f"{block}.node_out", 1, (0, 1 / STEEP), (1, -1 / STEEP), (2, -1), (3, 1))
    hand.put("head.0", 0, (1, 1))
    hand.put("head.0", 1, (1, -1))
    hand.put("head.3", 0, (0, 1), (1, -1))
    return hand


@pytest.mark.parametrize(
    "widths", [(3, 2), (2, 8, 1), (3, 5, 4, 2), (4, 6, 1, 6, 3), (5, 17, 9, 7, 2)]
)
def test_message_passing_runs_the_network_it_reads(widths: tuple[int, ...]) -> None:
    hand = forward_pass(num_layers=4)
    for seed in range(3):
        network = relu_mlp(*widths, seed=seed)
        graph = captured(network)
        batch = pg.collate([(graph, graph.features(network.state_dict()))])
        inputs = 2 * torch.randn(widths[0])
        hand.state["node_encoder.places.0.weight"][: widths[0], 0] = inputs
        found = hand.done()(batch)
        assert isinstance(found, Tensor)
        outputs = found[batch.kind == 2, 0]
        expected = network(inputs)
        assert expected.abs().max() > 0.01
        assert torch.allclose(outputs, expected, rtol=0, atol=1e-6), (
            (outputs - expected).abs().max()
        )
        if len(network) > 1:  # features of hidden neurons are their activations
            hidden = network[:2](inputs)
            first = found[widths[0] : widths[0] + len(hidden), 0]
            assert torch.allclose(first, hidden, rtol=0, atol=1e-6)


def test_as_many_blocks_as_layers_are_needed() -> None:
    """With one block less, the outputs have not heard of the inputs."""
    network = relu_mlp(3, 5, 4, 2)
    graph = captured(network)
    batch = pg.collate([(graph, graph.features(network.state_dict()))])
    inputs = torch.randn(3)
    found = {}
    for num_layers in (2, 3):
        for factor in (1.0, 2.0):
            hand = forward_pass(num_layers)
            hand.state["node_encoder.places.0.weight"][:3, 0] = factor * inputs
            predicted = hand.done()(batch)
            assert isinstance(predicted, Tensor)
            found[num_layers, factor] = predicted[batch.kind == 2]
    assert torch.equal(found[2, 1.0], found[2, 2.0])
    assert (found[3, 1.0] - found[3, 2.0]).abs().max() > 1e-3


# --- what tells the tensors of an MLP apart: the kind of their edges, and their layer


def tensors_of(num_layers: int) -> list[tuple[LinkKind, int]]:
    """Kind and depth of the edges of each weight and bias, in the order of the network."""
    kinds = (LinkKind.LINEAR, LinkKind.BIAS)
    return [(kind, depth) for depth in range(1, num_layers + 1) for kind in kinds]


def tell_tensors(hand: ByHand, num_layers: int, first: int) -> int:
    """Let channels from ``first`` on hold one-hot kind and layer; the first channel after them."""
    for place, kind in enumerate((LinkKind.LINEAR, LinkKind.BIAS)):
        hand.state["link_encoder.kind.weight"][kind.index, first + place] = 1
    for depth in range(1, num_layers + 1):
        hand.state["link_encoder.depth.weight"][depth, first + 1 + depth] = 1
    return first + 2 + num_layers


def gate(hand: ByHand, name: str, row: int, tensor: tuple[LinkKind, int], first: int) -> None:
    """Let a unit be shut, unless an edge belongs to a tensor."""
    kind, depth = tensor
    open_to = (first + int(kind is LinkKind.BIAS), first + 1 + depth)
    hand.put(name, row, *((channel, SHUT) for channel in open_to))
    hand.state[f"{name}.bias"][row] += -2 * SHUT


# --- 2. statistics


def statistics(widths: tuple[int, ...]) -> ByHand:
    """Mean and variance of each weight and bias of an MLP."""
    tensors = tensors_of(len(widths) - 1)
    sizes = [n for before, after in pairwise(widths) for n in (before * after, after)]
    hand = ByHand(2 * len(tensors), hidden_dim=32, num_layers=1, readout="edges")
    hand.read_weights(0)
    tell_tensors(hand, len(widths) - 1, first=1)
    for number, tensor in enumerate(tensors):
        share = sum(sizes) / sizes[number]  # of the mean over all edges
        unit, square = 4 * number, 2 / SMALL**2
        for place, factor in enumerate((1, -1, SMALL, -SMALL)):
            hand.put("read_edges", unit + place, (0, factor))
            gate(hand, "read_edges", unit + place, tensor, first=1)
        mean = ((unit, share), (unit + 1, -share))
        second = ((unit + 2, share * square), (unit + 3, share * square))
        for place, (terms, factor) in enumerate(
            [(mean, 1), (mean, -1), (mean, SMALL), (mean, -SMALL), (second, 1), (second, -1)]
        ):
            row = 6 * number + place
            hand.put("head.0", row, *((column, factor * value) for column, value in terms))
        row = 6 * number
        hand.put("head.3", 2 * number, (row, 1), (row + 1, -1))
        minus = ((row + 2, -square), (row + 3, -square))
        hand.put("head.3", 2 * number + 1, (row + 4, 1), (row + 5, -1), *minus)
    return hand


@pytest.mark.parametrize("widths", [(3, 5, 2), (2, 1, 1), (3, 6, 4, 2), (2, 4, 4, 4, 1)])
def test_means_and_variances_of_all_layers_are_read(widths: tuple[int, ...]) -> None:
    """Mean and variance as StatNN reads them, to 1e-6."""
    m = statistics(widths).done()
    graph = captured(relu_mlp(*widths))
    states = [relu_mlp(*widths, seed=seed).state_dict() for seed in range(4)]
    batch = pg.collate([(graph, graph.features(states))])
    columns = layer_statistics(batch.parts[0]).unflatten(1, (-1, NUM_STATISTICS))
    expected = columns[:, :, :2].flatten(1)
    found = m(batch)
    assert isinstance(found, Tensor)
    assert expected.std(0).max() > 0.05
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


# --- 3. the layers of NP-NFN


def np_layer(layer: EquivariantLinear, widths: tuple[int, ...]) -> ByHand:
    """An NP layer with one channel in and out, as two blocks.

    The first block copies each tensor to a channel of its own, sums channels over the edges of each
    node in both directions, and averages them over the network. The second adds up, for each tensor
    by itself, what the layer does with its rows, columns and means.
    """
    num_layers = len(widths) - 1
    axes = chain_axes(num_layers)  # all weights, then all biases
    weights, biases = tensors_of(num_layers)[::2], tensors_of(num_layers)[1::2]
    tensors = [*weights, *biases]
    num_edges = sum((before + 1) * after for before, after in pairwise(widths))
    hand = ByHand(
        1, level="parameter", hidden_dim=48, num_layers=2, use_global=True, aggregation="sum"
    )
    hand.read_weights(0)
    own = tell_tensors(hand, num_layers, first=1)  # channel of a tensor on its edges
    result = own + len(tensors)
    incoming, outgoing = 0, len(tensors)  # channels of sums at nodes
    for t, tensor in enumerate(tensors):
        for place, sign in enumerate((1, -1)):
            unit = 2 * t + place
            hand.put("blocks.0.edge", unit, (0, sign))
            gate(hand, "blocks.0.edge", unit, tensor, first=1)
            hand.put("blocks.0.edge_out", own + t, (unit, sign))
            hand.put("blocks.0.message", unit, (own + t, sign))
            hand.put("blocks.0.network_edges", unit, (own + t, sign))
            hand.put("blocks.0.network_out", t, (unit, sign))
            for read, channel in (("node_in", incoming + t), ("node_back", outgoing + t)):
                unit = 2 * channel + place
                hand.put(f"blocks.0.{read}", unit, (2 * t, sign), (2 * t + 1, -sign))
                hand.put("blocks.0.node_out", channel, (unit, sign))
    for subset, members, linear in zip(layer.subsets, layer.members, layer.maps, strict=True):
        assert isinstance(linear, nn.Linear)
        for row, to in enumerate(members):
            for column, of in enumerate(members):
                value = float(linear.weight[row, column].detach())
                size = 1.0
                for axis in axes[of]:
                    size *= 1 if axis in subset else widths[axis]
                if not subset:
                    where, term = "edge_network", (of, value * num_edges / size)
                elif len(subset) == 2:
                    where, term = "edge", (own + of, value)
                else:
                    (axis,) = subset
                    channel = (incoming if axes[of][0] == axis else outgoing) + of
                    end = "receiver" if axes[to][0] == axis else "sender"
                    where, term = f"edge_{end}", (channel, value / size)
                for place, sign in enumerate((1, -1)):
                    name = f"blocks.1.{where}.weight"
                    hand.state[name][2 * to + place, term[0]] += sign * term[1]
            if linear.bias is not None:
                for place, sign in enumerate((1, -1)):
                    constant = sign * float(linear.bias[row].detach())
                    hand.state["blocks.1.edge.bias"][2 * to + place] += constant
    for t, tensor in enumerate(tensors):
        for place, sign in enumerate((1, -1)):
            gate(hand, "blocks.1.edge", 2 * t + place, tensor, first=1)
            hand.put("blocks.1.edge_out", result, (2 * t + place, sign))
    for unit, sign in enumerate((1, -1)):
        hand.put("edge_head.0", unit, (result, sign))
        hand.put("edge_head.3", 0, (unit, sign))
    return hand


@pytest.mark.parametrize("widths", [(3, 5, 2), (3, 4, 5, 2), (2, 3, 1, 4, 2)])
def test_layers_of_np_nfn_are_two_blocks(widths: tuple[int, ...]) -> None:
    """All maps of ``EquivariantLinear`` between all weights and biases, to 1e-8."""
    num_layers = len(widths) - 1
    axes = chain_axes(num_layers)
    layer = EquivariantLinear(axes, [1] * len(axes), [1] * len(axes)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    states = [relu_mlp(*widths, seed=seed).state_dict() for seed in range(3)]
    names = [f"{2 * i}.{kind}" for kind in ("weight", "bias") for i in range(num_layers)]
    tensors = [torch.stack([state[name] for state in states]) for name in names]
    expected = layer([tensor[..., None] for tensor in tensors])
    graph = captured(relu_mlp(*widths))
    batch = pg.collate([(graph, graph.features(states))])
    entries = np_layer(layer, widths).done()(batch)
    assert isinstance(entries, Entries)
    found = graph.write_back(entries.values(batch)[0][0])
    for name, tensor in zip(names, expected, strict=True):
        assert tensor.std() > 0.05
        assert torch.allclose(found[name], tensor[..., 0], rtol=0, atol=1e-8), name


def test_each_map_of_np_nfn_is_needed() -> None:
    """Each single map of the layer moves the entries by itself, and by what it says."""
    widths = (3, 4, 2)
    axes = chain_axes(2)
    graph = captured(relu_mlp(*widths))
    state = relu_mlp(*widths).state_dict()
    batch = pg.collate([(graph, graph.features(state))])
    names = ["0.weight", "2.weight", "0.bias", "2.bias"]
    count = 0
    for subset in range(len(EquivariantLinear(axes, [1] * 4, [1] * 4).maps)):
        layer = EquivariantLinear(axes, [1] * 4, [1] * 4).double()
        for number, linear in enumerate(layer.maps):
            assert isinstance(linear, nn.Linear)
            linear.weight.data *= number == subset
            if linear.bias is not None:
                linear.bias.data.zero_()
        expected = layer([state[name][None, ..., None] for name in names])
        entries = np_layer(layer, widths).done()(batch)
        assert isinstance(entries, Entries)
        found = graph.write_back(entries.values(batch)[0][0])
        for name, tensor in zip(names, expected, strict=True):
            assert torch.allclose(found[name][0], tensor[0, ..., 0], rtol=0, atol=1e-8)
        count += max(float(found[name].detach().abs().max()) for name in names) > 1e-3
    assert count == len(layer.maps)
