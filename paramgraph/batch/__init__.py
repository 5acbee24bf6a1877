"""GraphBatch: many networks, of one or many architectures, as flat tensors and dense blocks.

Neurons are ordered by depth, then architecture, network, neuron; edge blocks of equal shape between
the same depths lie side by side (a *bucket*), whichever architecture they come from. So per-neuron
and per-edge maps run on one flat tensor, and message passing runs on a few dense blocks. A batch of
B networks of one architecture is the special case where every bucket is one block with B copies.
"""

from paramgraph.batch.collate import collate
from paramgraph.batch.entries import (
    Entries,
    edges_by_part,
    edges_from_parts,
    neurons_by_part,
    neurons_from_parts,
)
from paramgraph.batch.records import (
    ROLES,
    BlockRole,
    Bucket,
    GraphBatch,
    NeuronSlot,
    Part,
    Rows,
    Slot,
    fan_in,
)

__all__ = [
    "ROLES",
    "BlockRole",
    "Bucket",
    "Entries",
    "GraphBatch",
    "NeuronSlot",
    "Part",
    "Rows",
    "Slot",
    "collate",
    "edges_by_part",
    "edges_from_parts",
    "fan_in",
    "neurons_by_part",
    "neurons_from_parts",
]
