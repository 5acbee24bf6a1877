"""The permutation symmetries of each network, worked out by hand.

A row ``(size, given)`` is one free axis group of two or more indices: ``size`` neurons that can be
permuted among themselves, independently for each joint index of the groups whose sizes stand in
``given``. The number of permutations is thus the product of ``size! ** prod(given)``.

Only free groups stand in ``given``. A group that depends on a frozen one (the head dims below the
heads of ALiBi) is written once per index of the frozen group: the same symmetries, and it does not
matter whether capture keeps them as one dependent group or as several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from paramgraph.structure import AxisGroup

__all__ = [
    "CANCELS",
    "EXPECTED_GROUPS",
    "KNOWN_SMALLER",
    "Row",
    "found_groups",
    "num_permutations",
    "permutations_of_rows",
]

Row = tuple[int, tuple[int, ...]]


def _rows(*rows: int | tuple[int, ...]) -> list[Row]:
    """``4`` is a group of 4, ``(2, 3)`` a group of 2 for each of the 3 indices of another."""
    pairs = [(row, ()) if isinstance(row, int) else (row[0], row[1:]) for row in rows]
    return sorted((size, tuple(sorted(given))) for size, given in pairs)


def found_groups(axis_groups: Iterable[AxisGroup]) -> list[Row]:
    """The free groups of a graph in the form of ``EXPECTED_GROUPS``."""
    by_name = {group.name: group for group in axis_groups}
    rows = []
    for group in by_name.values():
        if not group.free or group.size < 2:
            continue
        given = [by_name[name] for name in group.given]
        free = tuple(sorted(g.size for g in given if g.free and g.size > 1))
        rows += [(group.size, free)] * math.prod(g.size for g in given if not g.free)
    return sorted(rows)


def permutations_of_rows(rows: Iterable[Row]) -> int:
    """How many permutations such groups allow."""
    return math.prod(
        math.factorial(size) ** (math.prod(given) * times)
        for (size, given), times in Counter(rows).items()
    )


def num_permutations(axis_groups: Iterable[AxisGroup]) -> int:
    """How many permutations the groups of a graph allow, as a whole number."""
    return permutations_of_rows(found_groups(axis_groups))


# 3 heads of 2 in a residual stream of 5: heads, q and k dims together per head, v dims per head.
_ATTENTION = _rows(5, 3, (2, 3), (2, 3))
# 2 heads of 2 by themselves, as in PyTorch's transformer layers
_TWO_HEADS: list[int | tuple[int, ...]] = [2, (2, 2), (2, 2)]
# 2 key heads of 4, each with 2 queries: the value dims of a head serve all its queries alike.
_GROUPED_ROTARY: list[int | tuple[int, ...]] = [5, 2, (2, 2), (4, 2)]

_OLD = {
    "mlp": _rows(5, 4),
    "mixed_activations": _rows(4, 4, 4, 4),
    "no_bias": _rows(5),
    "strided_cnn": _rows(3, 4),
    "cnn_1d": _rows(4, 3),
    "flatten": _rows(3, 4),
    "permute_then_flatten": _rows(4),
    "residual_mlp": _rows(5, 4),
    "resnet": _rows(2, 3, 3),
    "preactivation_residual": _rows(5),
    "batch_norm": _rows(5),
    "batch_norm_without_affine": _rows(5),
    "layer_norm": _rows(5),
    "group_norm": _rows(3, (2, 3)),
    "depthwise": _rows(4),
    "tied": _rows(4),
    "unused_parameter": _rows(5),
    "two_inputs": _rows(5),
    "raw_parameters": _rows(5),
    "siren": _rows(5, 5),
    "raw_and_activated": _rows(5),
    "dict_output": _rows(5),
    "width_one": _rows(3),
}

_CONVOLUTION = {
    # each piece of the concatenation on its own: stem, two blocks, then the transition
    "dense_concat": _rows(3, 2, 2, 4),
    # the residual stream; the widened channels with their squeeze gate; the squeezed ones
    "squeeze_excite": _rows(4, 6, 2),
    # fine, coarse, middle, upsampled, decoded
    "u_net": _rows(2, 4, 5, 3, 3),
    # whole groups; then channels into and out of each group
    "grouped_conv": _rows(3, (2, 3), (3, 3)),
    "grouped_transposed_conv": _rows(2, (2, 2), (3, 2)),
    # Groups g of the first convolution, i channels into each. Its output is (g, a, b) with a, b of
    # 2, shuffled to (a, b, g): a are the groups of the second convolution, whose kernels see all
    # (b, g). So b depends on both g and a, g and a on nothing, and o out of each group on a.
    "channel_shuffle": _rows(2, (2, 2), 2, (2, 2, 2), (3, 2)),
    "conv_3d": _rows(3, 4),
    # Groups of the norm (2) hold groups of the convolution (2 each) hold channels (2 each).
    "group_norm_grouped_conv": _rows(2, (2, 2), (2, 2, 2), (3, 2, 2)),
    # The first 4 channels are 2 groups of the norm, the last 2 a third one.
    "group_norm_of_concat": _rows(2, (2, 2), 2),
    "excite_after_group_norm": _rows(3, (2, 3)),
    # The half of the stem that is changed first; of the other half and of the first unit's output,
    # two channels each pass the second unit and two are changed by it; two hidden layers; the
    # second unit's output, which only the head reads.
    "shuffled_halves": _rows(4, 2, 2, 2, 2, 4, 4, 4),
    "instance_norm": _rows(3, 4),
    # The 8 channels before the shuffle are (2 channels, 2 rows, 2 columns).
    "pixel_shuffle": _rows(3, 2),
    "generator": _rows(4, 3),
    "channels_last_block": _rows(4, 6),
    # stream, hidden neurons over tokens, hidden neurons over channels
    "mixer": _rows(5, 3, 6),
    # The planes are summed, so their features are the same neurons.
    "tri_plane": _rows(4, 5),
}

_ATTENTION_NETWORKS = {
    # no residual: the attention's output is a group of its own
    "multihead_attention": _rows(6, 3, (2, 3), (2, 3), 6),
    "encoder_post_norm": _rows(4, *_TWO_HEADS, 3),
    "encoder_pre_norm": _rows(4, *_TWO_HEADS, 3, *_TWO_HEADS, 3),
    # Stream and memory are two groups, though both are columns of the packed in_proj_weight of the
    # cross-attention: its q rows read the stream, its k and v rows the memory.
    "decoder": _rows(4, 4, *_TWO_HEADS, *_TWO_HEADS, 3),
    "cross_attention": _rows(4, 3, 2, (2, 2), (2, 2), 4),
    "packed_by_kind": _ATTENTION,
    "packed_by_head": _ATTENTION,
    "packed_by_head_chunked": _ATTENTION,
    # key heads, queries of each, q and k dims of each key head, v dims of each key head
    "grouped_queries": _rows(5, 2, (2, 2), (3, 2), (3, 2)),
    # Rotations mix q and k dims in pairs of different frequency.
    "grouped_queries_rotary": _rows(*_GROUPED_ROTARY),
    "grouped_queries_partly_rotary": _rows(*_GROUPED_ROTARY, (2, 2)),
    # one key head: all heads share one order of its dims
    "multi_query": _rows(5, 3, 2, 2),
    "multi_query_rotary": _rows(5, 3, 2),
    # Each head has a slope of its own, so heads are frozen; their dims are not.
    "alibi": _rows(5, *[2] * 6),
    "relative_bias": _ATTENTION,
    # The norms' gains are shared by all heads, so their dims are, too.
    "query_key_norm": _rows(5, 3, 4, (4, 3)),
    "vision_transformer": _rows(4, *_TWO_HEADS, 3),
    # A constant is added to the residual stream.
    "fixed_positions": _rows(3),
}

_RECURRENT = {
    # The four gates of a unit move together.
    "lstm": _rows(4),
    "lstm_two_layers": _rows(4, 4),
    # cells, and the projected state
    "lstm_projected": _rows(4, 2),
    "bi_lstm": _rows(3, 3, 3, 3),
    "gru": _rows(4),
    "bi_gru": _rows(4, 4),
    "gru_cell": _rows(4),
    "elman": _rows(4),
    # stream, inner channels, rank of the step, states (shared by all channels)
    "selective_scan": _rows(5, 4, 2, 3),
    "loop_of_the_data": _rows(4),
    # the stream, and the hidden neurons of each of two layers
    "stacked_layers": _rows(5, 4, 4),
    "written_in_place": _rows(5),
}

_MIXTURES = {
    "gated_with_rms_norm": _rows(5, 4),
    # A unit is a row of the value half and the same row of the gate half.
    "packed_gate": _rows(4),
    "dense_experts": _rows(5, 3, (4, 3)),
    # Choosing the best two does not depend on the order of the experts.
    "chosen_experts": _rows(5, 3, (4, 3)),
    # Experts are different parameters: exchanging them is no permutation of any tensor.
    "expert_modules": _rows(5, 4, 4, 4),
    "tied_embedding": _rows(4, 3),
    "prelu": _rows(5, 4),
    "weight_norm": _rows(5, 4),
    # hidden neurons, rank
    "low_rank": _rows(5, 2),
    "set_network": _rows(5, 4),
    "equivariant_set_layers": _rows(5, 4),
    # neurons of the writer; the written layer's neurons (its 3 columns are inputs)
    "hypernetwork": _rows(4, 5),
    "modulation": _rows(4),
    "message_passing": _rows(4, 5, 3),
    "fixed_frequencies": _rows(5),
    "radial": _rows(4, 5),
    "bilinear": _rows(4, 3, 5),
    "outer_product": _rows(4, 3),
    "tied_autoencoder": _rows(4),
}

EXPECTED_GROUPS: dict[str, list[Row]] = {
    **_OLD,
    **_CONVOLUTION,
    **_ATTENTION_NETWORKS,
    **_RECURRENT,
    **_MIXTURES,
}

# Parameters without any effect on the function, though they take part in computing it. A norm
# takes the mean away, and with it the bias before; a key bias adds the same to all scores of a
# query, which softmax does not see (unless the keys are rotated or normalised after it).
CANCELS: dict[str, set[str]] = {
    "instance_norm": {"0.bias", "3.bias"},
    "grouped_queries": {"key.bias"},
    "grouped_queries_partly_rotary": {"key.bias"},
    "multi_query": {"key.bias"},
    "alibi": {"key.bias"},
    "relative_bias": {"key.bias"},
}

# Valid, but smaller than the truth: what is found instead, and by which factor too few
# permutations. ``shuffled_halves`` interleaves two halves of different origin and cuts the result
# in halves again; an axis of which every second index is of another group has no type, so it is
# fixed from the second unit on.
KNOWN_SMALLER: dict[str, tuple[list[Row], int]] = {
    "shuffled_halves": (sorted(_rows(2, 2, 4, 4, 4)), 96),
}
