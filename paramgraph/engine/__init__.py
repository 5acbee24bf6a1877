"""Block primitives: what message passing is made of, each with a slow twin.

The fast form works on dense blocks ``[m, num_blocks, receivers, senders, dim]`` without edge-wise
gathers; the slow twin (``slow_*``) works on an explicit edge list with index operations and exists
to check the fast form against.
"""

from paramgraph.engine.autocast import in_full, without_autocast
from paramgraph.engine.blocks import add_rows, push, receivers_of, senders_of
from paramgraph.engine.compiling import (
    address,
    library,
    native_status,
    runs_natively,
    type_name,
)
from paramgraph.engine.edge_pass import EdgePass, edge_passes
from paramgraph.engine.edge_tiles import EdgeSource, EdgeUpdate, FilmWeights
from paramgraph.engine.film import film_pass
from paramgraph.engine.moments import MessageTotals, message_statistics, num_messages
from paramgraph.engine.slow import edge_index, slow_moments, slow_push
from paramgraph.engine.tiles import tile_bytes, workspace

__all__ = [
    "EdgePass",
    "EdgeSource",
    "EdgeUpdate",
    "FilmWeights",
    "MessageTotals",
    "add_rows",
    "address",
    "edge_index",
    "edge_passes",
    "film_pass",
    "in_full",
    "library",
    "message_statistics",
    "native_status",
    "num_messages",
    "push",
    "receivers_of",
    "runs_natively",
    "senders_of",
    "slow_moments",
    "slow_push",
    "tile_bytes",
    "type_name",
    "without_autocast",
    "workspace",
]
