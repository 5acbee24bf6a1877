"""Block primitives: what message passing is made of, each with a slow twin.

The fast form works on dense blocks ``[m, num_blocks, receivers, senders, dim]`` without edge-wise
gathers; the slow twin (``slow_*``) works on an explicit edge list with index operations and exists
to check the fast form against.
"""

from paramgraph.engine.blocks import add_rows, push, receivers_of, senders_of
from paramgraph.engine.moments import BucketMoments, Moments
from paramgraph.engine.slow import edge_index, slow_moments, slow_push

__all__ = [
    "BucketMoments",
    "Moments",
    "add_rows",
    "edge_index",
    "push",
    "receivers_of",
    "senders_of",
    "slow_moments",
    "slow_push",
]


def moments(batch, messages):
    """Temporary while pna.py is rewritten."""
    total = Moments(batch)
    for number, bucket in enumerate(batch.buckets):
        up, down = messages(number)
        if up is not None:
            total.add(bucket, BucketMoments.of(up, 2))
        if down is not None:
            total.add(bucket, BucketMoments.of(down, 1), to_senders=True)
    return total.finish()
