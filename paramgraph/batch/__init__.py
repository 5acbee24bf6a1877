"""GraphBatch: many networks, of one or many architectures, as flat tensors and dense blocks.

Neurons are ordered by depth, then architecture, network, neuron; edge blocks of equal shape between
the same depths lie side by side (a *bucket*), whichever architecture they come from. So per-neuron
and per-edge maps run on one flat tensor, and message passing runs on a few dense blocks. A batch of
B networks of one architecture is the special case where every bucket is one block with B copies.
"""

from paramgraph.batch.collate import collate
from paramgraph.batch.records import ROLES, BlockRole, Bucket, GraphBatch, Part, Rows, fan_in

__all__ = ["ROLES", "BlockRole", "Bucket", "GraphBatch", "Part", "Rows", "collate", "fan_in"]
