"""Readouts: features of all neurons of a network to one vector, for any metanetwork."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.errors import BatchError
from paramgraph.nn.metanetwork import network_mean
from paramgraph.nn.set_attention import SetTransformer

__all__ = ["READOUTS", "GraphReadout"]

READOUTS = (
    "outputs",
    "mean",
    "max",
    "mean-outputs",
    "layers",
    "set-transformer",
    "cls",
    "mean-edges",
)
"""Kinds of readouts."""


class GraphReadout(nn.Module):
    """Neurons ``[N, dim]`` to one vector per network ``[num_networks, read_dim]``.

    | kind | what is read | ``read_dim`` |
    |---|---|---|
    | ``"outputs"`` | output neurons, in their order | ``num_outputs * dim`` |
    | ``"mean"``, ``"max"`` | all neurons | ``dim`` |
    | ``"mean-outputs"`` | mean of the output neurons | ``dim`` |
    | ``"layers"`` | mean of each layer, see ``num_layers`` | ``num_layers * dim`` |
    | ``"set-transformer"`` | attention over all neurons | ``dim`` |
    | ``"cls"`` | one further row per network that took part in message passing | ``dim`` |
    | ``"mean-edges"`` | means over all neurons, the output neurons, all edges | see ``edge_dim`` |

    For ``"cls"`` the metanetwork appends ``first_tokens(num_networks)`` behind the neurons, joins
    them with the neurons of their network, and passes ``[N + num_networks, dim]`` to ``forward``.

    Args:
        kind: See the table.
        dim: Width of the neuron features.
        num_outputs: Output neurons of each network, for ``"outputs"``.
        num_layers: For ``"layers"``: the last vector is that of the output neurons, the others
            those of depth 0, 1, ...; deeper neurons share the last but one, so that networks of
            any depth have a readout. Layers that a network does not have are 0.
        edge_dim: Width of edge features for ``"mean-edges"``, ``dim`` when not given; ``read_dim``
            is then ``2 * dim + edge_dim``.
        num_heads: Heads of the set transformer.

    Raises:
        ValueError: Unknown kind, or fewer than two layers.

    Example:
        >>> GraphReadout("outputs", 8, num_outputs=10).read_dim
        80

    References:
        Kofinas et al. 2024, section 3 (concatenated output neurons), and the alternatives of their
        code.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        *,
        num_outputs: int = 1,
        num_layers: int = 8,
        edge_dim: int | None = None,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        if kind not in READOUTS:
            raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {kind!r}.")
        if kind == "layers" and num_layers < 2:
            raise ValueError(f"readout='layers' needs num_layers of 2 or more, got {num_layers}.")
        self.kind = kind
        self.dim = dim
        self.num_outputs = num_outputs
        self.num_layers = num_layers
        edge_dim = dim if edge_dim is None else edge_dim
        widths = {
            "outputs": num_outputs * dim,
            "layers": num_layers * dim,
            "mean-edges": 2 * dim + edge_dim,
        }
        self.read_dim = widths.get(kind, dim)
        self.attention = (
            SetTransformer(dim, num_heads=num_heads) if kind == "set-transformer" else None
        )
        self.token = nn.Parameter(torch.randn(dim)) if kind == "cls" else None

    def first_tokens(self, num_networks: int) -> Tensor:
        """What the further rows of ``"cls"`` start from ``[num_networks, dim]``.

        Raises:
            ValueError: The readout has another kind.
        """
        if self.token is None:
            raise ValueError(f"readout {self.kind!r} has no tokens; they belong to 'cls'.")
        return self.token.expand(num_networks, -1)

    def forward(
        self, batch: GraphBatch, neurons: Tensor, edges_mean: Tensor | None = None
    ) -> Tensor:
        """Read each network.

        Args:
            batch: The networks.
            neurons: ``[N, dim]``, for ``"cls"`` ``[N + num_networks, dim]``.
            edges_mean: Mean of the edge features of each network ``[num_networks, edge_dim]``,
                for ``"mean-edges"``.

        Returns:
            ``[num_networks, read_dim]``.

        Raises:
            BatchError: A network does not have ``num_outputs`` outputs, or ``neurons`` has another
                number of rows.
            ValueError: ``edges_mean`` is missing.
        """
        num_rows = batch.num_neurons + (batch.num_networks if self.kind == "cls" else 0)
        if len(neurons) != num_rows:
            raise BatchError(
                f"readout {self.kind!r} needs {num_rows} rows for {batch.num_neurons} neurons of "
                f"{batch.num_networks} networks, got {len(neurons)}: 'cls' reads one further row "
                "per network, the others none."
            )
        if self.kind == "cls":
            return neurons[batch.num_neurons :]
        if self.kind == "mean":
            return network_mean(neurons, batch.network, batch.num_networks)
        if self.kind == "max":
            return _network_max(neurons, batch.network, batch.num_networks)
        if self.attention is not None:
            read: Tensor = self.attention(neurons, batch.network, batch.num_networks)
            return read
        if self.kind == "layers":
            return self._layers(batch, neurons)
        if self.kind == "outputs":
            return self._outputs(batch, neurons)
        rows = (batch.kind == 2).nonzero()[:, 0]
        outputs = network_mean(neurons[rows], batch.network[rows], batch.num_networks)
        if self.kind == "mean-outputs":
            return outputs
        if edges_mean is None:
            raise ValueError("readout='mean-edges' needs edges_mean, the mean of edge features.")
        everything = network_mean(neurons, batch.network, batch.num_networks)
        return torch.cat([everything, outputs, edges_mean], dim=1)

    def _outputs(self, batch: GraphBatch, neurons: Tensor) -> Tensor:
        rows = (batch.kind == 2).nonzero()[:, 0]
        counts = torch.bincount(batch.network[rows], minlength=batch.num_networks)
        if bool((counts != self.num_outputs).any()):
            raise BatchError(
                f"readout='outputs' was made for {self.num_outputs} output neurons, but networks "
                f"of the batch have {sorted(set(counts.tolist()))}: use readout='mean'."
            )
        order = (batch.network[rows] * self.num_outputs + batch.identity[rows]).argsort()
        return neurons[rows[order]].reshape(batch.num_networks, -1)

    def _layers(self, batch: GraphBatch, neurons: Tensor) -> Tensor:
        layer = batch.depth.clamp(max=self.num_layers - 2)
        layer = torch.where(batch.kind == 2, self.num_layers - 1, layer)
        number = batch.network * self.num_layers + layer
        means = network_mean(neurons, number, batch.num_networks * self.num_layers)
        return means.reshape(batch.num_networks, -1)


def _network_max(values: Tensor, network: Tensor, num_networks: int) -> Tensor:
    """Largest value of neurons ``[n, dim]`` per network and channel ``[num_networks, dim]``."""
    index = network[:, None].expand_as(values)
    start = values.new_zeros(num_networks, values.shape[1])
    return start.scatter_reduce(0, index, values, "amax", include_self=False)
