"""Where the nodes and node pairs of a batch lie when each network is a dense array of pairs.

Networks with equally many nodes and outputs form a group ``[B, n, n]``: no padding, whatever their
architectures. Within a network a virtual node comes first, then its outputs, then all others, so
that what a readout reads are the first rows. Everything here is a function of structures, cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.batch.layout import HashedGraph, Layout, make_layout

__all__ = ["DenseGroup", "DenseLayout", "PairList", "dense_layout"]

_OUTPUT = 2  # GraphBatch.kind


@dataclass(frozen=True, eq=False)
class PairList:
    """The joined pairs (i, j) in the first rows of the networks of a group, ordered by i, then j.

    Attributes:
        row_sizes: Rows r of each network, cut into tiles; one tile if there are several networks.
        pair_sizes: Pairs of each tile.
        number: ``[P]`` number among the joined pairs of all rows.
        position: ``[P]`` place in ``[B, r, n]``, flattened.
        source: ``[P]`` place of i in ``[B, n]``, flattened.
        target: ``[P]`` place of j in ``[B, n]``.
        reverse: ``[P]`` number of (j, i) among the joined pairs of all rows.
    """

    row_sizes: tuple[int, ...]
    pair_sizes: tuple[int, ...]
    number: Tensor
    position: Tensor
    source: Tensor
    target: Tensor
    reverse: Tensor

    @property
    def num_rows(self) -> int:
        """Rows r of each network."""
        return sum(self.row_sizes)


@dataclass(frozen=True, eq=False)
class DenseGroup:
    """Networks of a batch that have n nodes, of which k are outputs.

    Attributes:
        num_networks: Number of networks B.
        num_nodes: Nodes n of each, a virtual one among them.
        num_outputs: Outputs k of each.
        nodes: ``[B, n]`` rows among all nodes of the batch.
        pairs: All joined pairs.
        read_pairs: Those of the rows that are read; ``pairs`` itself if these are all.
    """

    num_networks: int
    num_nodes: int
    num_outputs: int
    nodes: Tensor
    pairs: PairList
    read_pairs: PairList


@dataclass(frozen=True, eq=False)
class DenseLayout:
    """All groups of a batch.

    Attributes:
        groups: By number of nodes.
        num_nodes: Neurons, then a virtual node per network (by architecture) if there are any.
        parallel: For each rank above 0 the edges ``[E]`` that join two neurons after so many
            others did.
        nodes: Rows of the nodes of all groups, one group after the other.
        slots: ``[2 E]`` for each edge, then for each reversed edge, the number of its pair among
            those of all groups; parallel edges have one pair.
        pair_sizes: Pairs of each group.
    """

    groups: tuple[DenseGroup, ...]
    num_nodes: int
    parallel: tuple[tuple[int, Tensor], ...]
    nodes: Tensor
    slots: Tensor
    pair_sizes: tuple[int, ...]


def dense_layout(
    batch: GraphBatch, *, token: bool, token_edges: bool, num_read: str, tile_size: int
) -> DenseLayout:
    """Layout of a batch; cached.

    Args:
        batch: The networks.
        token: Whether each network has a virtual node.
        token_edges: Whether it is joined with all neurons of its network.
        num_read: Rows that are read: ``"all"``, ``"outputs"`` or ``"token"``.
        tile_size: Pairs of a tile.
    """
    return _layout(
        tuple(HashedGraph(part.graph) for part in batch.parts),
        tuple(part.values.num_networks for part in batch.parts),
        str(batch.network.device),
        token,
        token_edges,
        num_read,
        tile_size,
    )


@lru_cache(maxsize=64)
def _layout(
    keys: tuple[HashedGraph, ...],
    counts: tuple[int, ...],
    device: str,
    token: bool,
    token_edges: bool,
    num_read: str,
    tile_size: int,
) -> DenseLayout:
    flat = make_layout(keys, counts, device)
    sender, receiver, rank = _edges(keys, flat, device)
    network = flat.local_network.to(device)
    num_networks, num_neurons = sum(counts), len(network)
    order = torch.where(flat.table[:, 1] == _OUTPUT, 1, 2)
    num_outputs = torch.bincount(network[order == 1], minlength=num_networks)
    if token:
        tokens = torch.arange(num_networks, device=device)
        if token_edges:
            neurons = torch.arange(num_neurons, device=device)
            sender = torch.cat([sender, neurons])
            receiver = torch.cat([receiver, num_neurons + network])
        network = torch.cat([network, tokens])
        order = torch.cat([order, torch.zeros_like(tokens)])
    num_nodes = torch.bincount(network, minlength=num_networks)
    by_network = (network * 3 + order).argsort(stable=True)
    first = num_nodes.cumsum(0) - num_nodes
    place = torch.empty_like(network)
    place[by_network] = torch.arange(len(network), device=device) - first[network[by_network]]
    source = torch.cat([sender, receiver])
    target = torch.cat([receiver, sender])
    shape = torch.stack([num_nodes, num_outputs], dim=1)
    shapes, shape_of = shape.unique(dim=0, return_inverse=True)
    groups: list[DenseGroup] = []
    slots = torch.empty_like(source)
    num_pairs = 0
    for kind, (n, k) in enumerate(shapes.tolist()):
        num_rows = {"all": n, "outputs": k, "token": 1}[num_read]
        for members in (shape_of == kind).nonzero()[:, 0].split(max(1, tile_size // (n * n))):
            index = torch.full_like(num_nodes, -1)
            index[members] = torch.arange(len(members), device=device)
            edges = (index[network[source]] >= 0).nonzero()[:, 0]
            i, j = source[edges], target[edges]
            position = (index[network[i]] * n + place[i]) * n + place[j]
            position, own = position.unique(return_inverse=True)
            slots[edges] = own + num_pairs
            num_pairs += len(position)
            pairs = read_pairs = _pair_list(position, n, n, len(members), tile_size)
            if num_rows < n:
                read_pairs = _pair_list(position, n, num_rows, len(members), tile_size)
            groups.append(
                DenseGroup(
                    num_networks=len(members),
                    num_nodes=n,
                    num_outputs=k,
                    nodes=by_network[first[members][:, None] + torch.arange(n, device=device)],
                    pairs=pairs,
                    read_pairs=read_pairs,
                )
            )
    ranks = [int(number) for number in rank.unique() if number]
    return DenseLayout(
        groups=tuple(groups),
        num_nodes=len(network),
        parallel=tuple((number, (rank == number).nonzero()[:, 0]) for number in ranks),
        nodes=torch.cat([group.nodes.flatten() for group in groups]),
        slots=slots,
        pair_sizes=tuple(len(group.pairs.number) for group in groups),
    )


def _edges(
    keys: tuple[HashedGraph, ...], layout: Layout, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Senders, receivers and ranks among parallel edges ``[E]``, in the flat order."""
    blocks = [key.graph.blocks for key in keys]
    columns = [torch.zeros(3, 0, dtype=torch.long, device=device)]
    for bucket in layout.buckets:
        one = blocks[bucket.slots[0].part][bucket.slots[0].block]
        copies = sum(slot.copies for slot in bucket.slots)
        shape = (copies, one.num_blocks, one.num_receivers, one.num_senders)
        s = bucket.senders.numbers(torch.device(device)) + layout.levels[bucket.sender_depth][0]
        r = bucket.receivers.numbers(torch.device(device)) + layout.levels[bucket.receiver_depth][0]
        ranks = []
        for slot in bucket.slots:
            own = blocks[slot.part]
            ends = (own[slot.block].sender, own[slot.block].receiver)
            before = [(b.sender, b.receiver) for b in own[: slot.block]].count(ends)
            ranks += [before] * slot.copies
        rank = torch.tensor(ranks, device=device)
        columns.append(
            torch.stack(
                [
                    s.reshape(*shape[:2], 1, shape[3]).expand(shape).reshape(-1),
                    r.reshape(*shape[:3], 1).expand(shape).reshape(-1),
                    rank[:, None, None, None].expand(shape).reshape(-1),
                ]
            )
        )
    sender, receiver, rank = torch.cat(columns, dim=1)
    return sender, receiver, rank


def _pair_list(
    position: Tensor, n: int, num_rows: int, num_networks: int, tile_size: int
) -> PairList:
    """The pairs of the first rows; ``position`` lists all, ascending, in ``[B, n, n]``."""
    network, i, j = position // (n * n), position // n % n, position % n
    reverse = torch.searchsorted(position, (network * n + j) * n + i)
    number = (i < num_rows).nonzero()[:, 0]
    network, i, j = network[number], i[number], j[number]
    step = num_rows if num_networks > 1 else max(1, tile_size // n)
    rows = [min(step, num_rows - start) for start in range(0, num_rows, step)]
    sizes = [len(number)]
    if len(rows) > 1:  # of one network
        sizes = torch.bincount(i // step, minlength=len(rows)).tolist()
    return PairList(
        row_sizes=tuple(rows),
        pair_sizes=tuple(sizes),
        number=number,
        position=(network * num_rows + i) * n + j,
        source=network * n + i,
        target=network * n + j,
        reverse=reverse[number],
    )
