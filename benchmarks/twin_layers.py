"""What both slow twins of NG-GNN are made of: their maps, their lift, and the weights of INRs.

A twin has the equations of ``ng-gnn-inr`` and none of its arrangement. ``load_weights`` gives it
the weights of one of ours, so that outputs and gradients can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.nn import NeuralGraphGNN

__all__ = ["InrWeights", "LayerMaps", "Lift", "NetworkNorm", "Twin"]


@dataclass(frozen=True)
class InrWeights:
    """Weights of B INRs of one layout, as their state dicts have them.

    Attributes:
        weights: For each layer ``[B, out, in]``.
        biases: For each layer ``[B, out]``.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> InrWeights:
        """From the stacked state dict of a ``Siren``."""
        layers = range(len(state) // 2)
        return cls(
            tuple(state[f"layers.{layer}.weight"] for layer in layers),
            tuple(state[f"layers.{layer}.bias"] for layer in layers),
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of every layer, the inputs first."""
        return (self.weights[0].shape[2], *(w.shape[1] for w in self.weights))


class Lift(nn.Module):
    """Gaussian Fourier features, then two linear maps.

    Args:
        in_dim: Number of values.
        num_frequencies: Rows of the projection.
        dim: Width of the features.
    """

    projection: Tensor

    def __init__(self, in_dim: int, num_frequencies: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.zeros(in_dim, num_frequencies))
        self.lift = nn.Linear(2 * num_frequencies, dim)
        self.map = nn.Linear(dim, dim)

    def forward(self, values: Tensor) -> Tensor:
        """Features ``[..., dim]`` of values ``[..., in_dim]``."""
        phase = values @ self.projection
        return self.map(self.lift(torch.cat([phase.cos(), phase.sin()], dim=-1)))


class NetworkNorm(nn.Module):
    """Layer norm over all neurons and channels of a network, networks of equal size.

    Args:
        dim: Number of channels.
        num_neurons: Of each network.
    """

    def __init__(self, dim: int, num_neurons: int) -> None:
        super().__init__()
        self.num_neurons = num_neurons
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B * num_neurons, dim]``."""
        flat = x.reshape(-1, self.num_neurons * x.shape[1])
        normal = nn.functional.layer_norm(flat, flat.shape[1:]).reshape(x.shape)
        return normal * self.weight + self.bias


class LayerMaps(nn.Module):
    """The maps of one layer, before anything is multiplied out.

    Args:
        dim: Width of neurons and edges.
        num_neurons: Of each network.
        is_last: Neither norm nor update of edges.
    """

    def __init__(self, dim: int, num_neurons: int, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.film = nn.Linear(dim, 2 * dim)
        self.message = nn.Linear(2 * dim, dim)
        self.post = nn.Linear(9 * dim, dim)
        self.out = nn.Linear(dim, dim)
        if not is_last:
            self.norm = NetworkNorm(dim, num_neurons)
            self.edge_own = nn.Linear(dim, dim)
            self.edge_source = nn.Linear(dim, dim)
            self.edge_target = nn.Linear(dim, dim)
            self.edge_out = nn.Linear(dim, dim)


class Twin(nn.Module):
    """Encoders, tables and head; a subclass passes the messages.

    Args:
        ours: The metanetwork whose function this is: ``ng-gnn-inr`` without probes.
        dims: Width of every layer of the INRs.

    Raises:
        ValueError: ``ours`` has options that a twin has no equations for.
    """

    log_degree: Tensor
    read_center: Tensor
    read_spread: Tensor
    weight_units: Tensor
    bias_unit: Tensor

    def __init__(self, ours: NeuralGraphGNN, dims: Sequence[int]) -> None:
        super().__init__()
        encoder = ours.neuron_encoder
        if ours.readout != "outputs" or ours.virtual_edges is not None or encoder.probes:
            raise ValueError(
                "a twin reads output neurons and has no probes, but this metanetwork has "
                f"readout={ours.readout!r} and probes {encoder.probes}: use 'ng-gnn-inr'."
            )
        dim, num_frequencies = ours.hidden_dim, encoder.num_frequencies
        self.dims, self.num_neurons = tuple(dims), sum(dims)
        self.neuron_lift = Lift(1, num_frequencies, dim)
        self.edge_lift = Lift(3, num_frequencies, dim)
        self.inputs = nn.Parameter(torch.zeros(dims[0], dim))
        self.hidden = nn.Parameter(torch.zeros(len(dims) - 2, dim))
        self.outputs = nn.Parameter(torch.zeros(dims[-1], dim))
        num_layers = len(ours.layers)
        self.layers = nn.ModuleList(
            LayerMaps(dim, self.num_neurons, is_last=number == num_layers - 1)
            for number in range(num_layers)
        )
        self.dropout = nn.Dropout(next(m.p for m in ours.head if isinstance(m, nn.Dropout)))
        self.head = nn.Sequential(
            *(nn.Linear(dims[-1] * dim, dim), nn.ReLU(), nn.Dropout(self.dropout.p)),
            *(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, ours.out_dim)),
        )
        self.register_buffer("log_degree", torch.ones(()))
        self.register_buffer("read_center", torch.zeros(dims[-1] * dim))
        self.register_buffer("read_spread", torch.ones(dims[-1] * dim))
        self.register_buffer("weight_units", torch.ones(len(dims) - 1))
        self.register_buffer("bias_unit", torch.ones(()))

    def forward(self, networks: InrWeights) -> Tensor:
        """Predict ``[B, out_dim]``."""
        neurons = self.pass_messages(networks).reshape(-1, self.num_neurons, self.inputs.shape[1])
        read = neurons[:, -self.dims[-1] :].flatten(1)
        predicted: Tensor = self.head((read - self.read_center) / self.read_spread)
        return predicted

    def pass_messages(self, networks: InrWeights) -> Tensor:
        """Neurons after all layers ``[B * num_neurons, dim]``, one network after the other."""
        raise NotImplementedError

    def first_neurons(self, networks: InrWeights) -> Tensor:
        """Neurons before the first layer ``[B, num_neurons, dim]``."""
        biases = [torch.zeros_like(networks.biases[0][:, :1]).expand(-1, self.dims[0])]
        values = torch.cat([*biases, *networks.biases], dim=1) / self.bias_unit
        places = [self.inputs]
        places += [self.hidden[i].expand(n, -1) for i, n in enumerate(self.dims[1:-1])]
        first: Tensor = self.neuron_lift(values[..., None]) + torch.cat([*places, self.outputs])
        return first

    @torch.no_grad()
    def load_weights(self, ours: NeuralGraphGNN, batch: pg.GraphBatch) -> None:
        """Take over the weights and statistics of ``ours``; ``batch`` tells the roles of layers."""
        for name, value in self.state_dict().items():
            value.copy_(self.from_ours(name, ours.state_dict()))
        by_depth = sorted(batch.buckets, key=lambda bucket: bucket.sender_depth)
        units = [ours.standardizer.edge_unit(bucket) for bucket in by_depth]
        self.weight_units.copy_(torch.stack(units))
        self.bias_unit.copy_(ours.standardizer.neuron_scale[0])

    def from_ours(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """The entry of our state dict that entry ``name`` of this one is made of."""
        if name in ("weight_units", "bias_unit"):  # follow from the standardizer
            return torch.ones(())
        if name == "neuron_lift.projection":
            return state["neuron_encoder.frequencies"][:1]
        if name == "edge_lift.projection":
            return torch.cat([self._direction(state, number) for number in range(3)])
        places = {"inputs": "inputs", "hidden": "depth", "outputs": "outputs"}
        if name in places:
            return state[f"neuron_encoder.{places[name]}.weight"]
        for part in ("neuron", "edge"):
            name = name.replace(f"{part}_lift.", f"{part}_encoder.")
        if name.endswith("message.weight"):
            stem = name.removesuffix("message.weight")
            ends = [state[f"{stem}message_{end}.weight"] for end in ("target", "source")]
            return torch.cat(ends, dim=1)
        return state[name.replace("message.bias", "message_target.bias")]

    @staticmethod
    def _direction(state: Mapping[str, Tensor], number: int) -> Tensor:
        """Row of the Gaussian projection of value ``number``, for a kernel of one element."""
        stem = f"edge_encoder.bases.{number}"
        waves = (state[f"{stem}.phase"]).cos()  # the only element lies at (0, 0)
        return (waves @ state[f"{stem}.mixing"])[None]
