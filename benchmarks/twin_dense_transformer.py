"""NG-T arranged as published: every tensor of edges is dense, ``[B, N, N, width]``.

All pairs of neurons are encoded, queries, keys and values of all pairs are held, and all rows are
computed in all layers. Pairs that no weight joins start from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from benchmarks.twin_layers import InrWeights
from paramgraph.nn import NeuralGraphTransformer
from paramgraph.nn.relational_attention import RelationalLayer

__all__ = ["DenseTransformerTwin"]


class DenseTransformerTwin(nn.Module):
    """``ng-t-inr`` on dense tensors; holds the maps of one of ours and uses none of its passes.

    Args:
        ours: Whose maps these are; give a copy to keep gradients apart.
        dims: Width of every layer of the INRs.

    Raises:
        ValueError: ``ours`` has options that the twin has no equations for.

    References:
        Kofinas et al. 2024, eq. 5 (https://arxiv.org/abs/2403.12143).
    """

    def __init__(self, ours: NeuralGraphTransformer, dims: Sequence[int]) -> None:
        super().__init__()
        if ours.readout != "outputs" or ours.edge_encoder.is_reversed or ours.stack.edges != "all":
            raise ValueError(
                "the dense twin reads output neurons, edges of one direction, all pairs; got "
                f"readout={ours.readout!r}, reverse_edges={ours.edge_encoder.is_reversed}, "
                f"edges={ours.stack.edges!r}: use 'ng-t-inr'."
            )
        self.ours = ours
        self.dims = tuple(dims)
        self.dropout = nn.Dropout(next(m.p for m in ours.head if isinstance(m, nn.Dropout)))

    def forward(self, networks: InrWeights) -> Tensor:
        """Predict ``[B, out_dim]``."""
        x, e = self._first_nodes(networks), self._first_edges(networks)
        for layer in self.ours.stack.layers:
            assert isinstance(layer, RelationalLayer)
            x = self._nodes(layer, x, e)
            if layer.updates_edges:
                e = self._edges(layer, x, e)
        read = x[:, -self.dims[-1] :].flatten(1)
        found: Tensor = self.ours.head((read - self.ours.read_center) / self.ours.read_spread)
        return found

    def _first_nodes(self, networks: InrWeights) -> Tensor:
        encoder = self.ours.neuron_encoder
        nothing = torch.zeros_like(networks.biases[0][:, :1]).expand(-1, self.dims[0])
        biases = torch.cat([nothing, *networks.biases], dim=1)
        values = (biases / self.ours.standardizer.neuron_scale[0])[..., None]
        phase = values @ encoder.frequencies[:1]
        lifted = encoder.map(encoder.lift(torch.cat([phase.cos(), phase.sin()], dim=-1)))
        places = [encoder.inputs.weight[: self.dims[0]]]
        places += [encoder.depth.weight[i].expand(n, -1) for i, n in enumerate(self.dims[1:-1])]
        nodes: Tensor = lifted + torch.cat([*places, encoder.outputs.weight[: self.dims[-1]]])
        return nodes

    def _first_edges(self, networks: InrWeights) -> Tensor:
        """``[B, N, N, edge_dim]``, row of the source, column of the target."""
        encoder, num = self.ours.edge_encoder, sum(self.dims)
        dense = networks.weights[0].new_zeros(len(networks.weights[0]), num, num, 1)
        mask = dense.new_zeros(num, num, 1)
        row = 0
        for weight, unit in zip(networks.weights, self._units(), strict=True):
            _, target, source = weight.shape
            column = row + source
            block = slice(row, column), slice(column, column + target)
            dense[:, block[0], block[1], 0] = (weight / unit).transpose(1, 2)
            mask[block] = 1
            row = column
        direction = encoder.bases[0](((0.0, 0.0),), dense)
        phase = dense @ direction
        features: Tensor = encoder.map(encoder.lift(torch.cat([phase.cos(), phase.sin()], dim=-1)))
        return features * mask

    def _units(self) -> list[Tensor]:
        """Size of a typical weight of each layer, as ``Standardizer.edge_unit`` has it."""
        scale = self.ours.standardizer.edge_scale
        last = len(self.dims) - 2
        # Roles of plain matrices come first: from inputs, between hidden neurons, to outputs.
        roles = [0, *[1] * (last - 1), 2] if last else [2]
        return [scale[role] / self.dims[i] ** 0.5 for i, role in enumerate(roles)]

    def _nodes(self, layer: RelationalLayer, x: Tensor, e: Tensor) -> Tensor:
        attention = layer.attention
        heads = (attention.num_heads, -1)
        q, k, v = attention.query_key_value(x).chunk(3, dim=-1)
        of_q, of_k, factor, shift = attention.edge_maps(e).chunk(4, dim=-1)
        query = (q[:, :, None] + of_q).unflatten(-1, heads)
        key = (k[:, None] + of_k).unflatten(-1, heads)
        value = (v[:, None] * factor + shift).unflatten(-1, heads)
        weight = (attention.scale * (query * key).sum(-1)).softmax(2)
        found = layer.attention_out((weight[..., None] * value).sum(2).flatten(2))
        x = layer.node_norm(x + self.dropout(layer.node_out(found)))
        inner = layer.node_second(gelu(layer.node_first(x)))
        new: Tensor = layer.node_last_norm(x + self.dropout(inner))
        return new

    def _edges(self, layer: RelationalLayer, x: Tensor, e: Tensor) -> Tensor:
        both = torch.cat([e, e.transpose(1, 2)], dim=-1)
        ends = layer.edge_source(x)[:, :, None] + layer.edge_target(x)[:, None]
        inner = layer.edge_out(gelu(layer.edge_own(both) + ends))
        e = layer.edge_norm(e + self.dropout(inner))
        inner = layer.edge_second(gelu(layer.edge_first(e)))
        new: Tensor = layer.edge_last_norm(e + self.dropout(inner))
        return new
