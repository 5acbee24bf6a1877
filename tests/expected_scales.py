"""The scale symmetries of each network, worked out by hand.

A row is what can be rescaled, and how many factors can be chosen independently:

| kind | factors | typical place |
|---|---|---|
| ``P`` positive | q > 0 | neurons before ReLU, leaky ReLU, PReLU |
| ``S`` sign | q = +-1 | neurons before tanh or sine; statistics of a batch norm |
| ``R`` real | any q except 0: one positive group and one sign group | neurons without activation |

``S(1)`` is the sign of a whole layer: minus its input gives minus its output before the gains, so
LayerNorm and GroupNorm let all neurons (of a group) be negated together, and no single one. With
RMSNorm, each neuron alone. Scales that hold only up to the eps of a norm are not listed, nor are
those of running statistics by themselves: a running variance scales as the square of its mean.

Larger continuous groups (any invertible map on the dims of a head, rotations of a residual stream)
are not diagonal and stand nowhere here; nor do the phase shifts of SIREN.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXPECTED_SCALES", "ScaleRow", "num_factors"]


@dataclass(frozen=True)
class ScaleRow:
    """A scale group.

    Attributes:
        kind: ``"positive"``, ``"sign"`` or ``"real"`` (both).
        size: Number of factors that can be chosen independently.
        of: What is rescaled.
    """

    kind: str
    size: int
    of: str


def _positive(size: int, of: str) -> ScaleRow:
    return ScaleRow("positive", size, of)


def _sign(size: int, of: str) -> ScaleRow:
    return ScaleRow("sign", size, of)


def _real(size: int, of: str) -> ScaleRow:
    return ScaleRow("real", size, of)


def num_factors(rows: list[ScaleRow], kind: str) -> int:
    """Number of independent factors of a kind, ``"positive"`` or ``"sign"``."""
    return sum(row.size for row in rows if row.kind in (kind, "real"))


_OLD = {
    "mlp": [_positive(5, "0"), _positive(4, "2")],
    # GELU keeps no scale
    "mixed_activations": [_sign(4, "0"), _positive(4, "2"), _sign(4, "6")],
    "no_bias": [_positive(5, "0")],
    "strided_cnn": [_positive(3, "0"), _positive(4, "3")],
    "cnn_1d": [_positive(4, "0"), _sign(3, "2")],
    "flatten": [_positive(3, "0"), _positive(4, "4")],
    "permute_then_flatten": [_positive(4, "conv")],
    # the stream, rectified once, and what is added to it
    "residual_mlp": [_positive(5, "first, up"), _positive(4, "down")],
    "resnet": [
        *(_positive(2, "stem"), _positive(3, "bn1"), _positive(3, "bn2, projection, conv3")),
        *(_sign(3, "conv1"), _sign(3, "conv2")),
    ],
    "preactivation_residual": [_sign(1, "stream"), _positive(5, "norm")],
    "batch_norm": [_sign(5, "0"), _positive(5, "1")],
    # no gain that could undo a sign: it goes on through tanh
    "batch_norm_without_affine": [_sign(5, "0")],
    "layer_norm": [_sign(1, "0")],
    "group_norm": [_sign(3, "0, per group")],
    "depthwise": [_positive(4, "0"), _positive(4, "2")],
    "tied": [_positive(4, "0")],
    "unused_parameter": [_positive(5, "first")],
    "two_inputs": [_positive(5, "left, right")],
    "raw_parameters": [_positive(5, "w, b")],
    "siren": [_sign(5, "first"), _sign(5, "second")],
    "raw_and_activated": [_positive(5, "first")],
    "dict_output": [_sign(5, "first")],
    "width_one": [_sign(1, "0"), _positive(3, "2")],
}

_CONVOLUTION = {
    # The first block's output enters two norms and the transition, the second one only the latter.
    "dense_concat": [
        *(_positive(3, "norms.0"), _positive(5, "norms.1"), _positive(4, "transition")),
        *(_sign(2, "convs.0"), _real(2, "convs.1")),
    ],
    # ReLU6 and hardswish keep no scale
    "squeeze_excite": [_positive(2, "squeeze"), _sign(6, "expand"), _sign(6, "depthwise")],
    "u_net": [
        *(_positive(2, "fine"), _positive(4, "coarse"), _positive(5, "middle"), _real(3, "up")),
        _positive(3, "decode"),
    ],
    "grouped_conv": [_positive(6, "0"), _positive(9, "2")],
    "grouped_transposed_conv": [_positive(4, "0"), _sign(6, "2")],
    "channel_shuffle": [_positive(4, "0"), _positive(8, "2"), _positive(6, "5")],
    "conv_3d": [_positive(3, "0"), _positive(4, "3")],
    "group_norm_grouped_conv": [_sign(2, "0, per group"), _positive(8, "1"), _positive(12, "3")],
    "group_norm_of_concat": [_sign(3, "per group")],
    # The maximum over pixels keeps no sign, so tanh gives none.
    "excite_after_group_norm": [_sign(3, "per group")],
    # All of the stem is rectified; tanh follows each unit.
    "shuffled_halves": [
        *(_positive(8, "stem"), _sign(4, "unit1"), _sign(4, "unit2")),
        *(_positive(4, "unit1.0"), _positive(4, "unit2.0")),
        *(_real(4, "unit1.2"), _real(4, "unit2.2")),
    ],
    # no gain after the second norm
    "instance_norm": [_sign(3, "0"), _positive(3, "1")],
    # A channel after the shuffle scales in all four of its places.
    "pixel_shuffle": [_positive(3, "0"), _positive(2, "2")],
    "generator": [_sign(4, "0"), _positive(4, "1"), _sign(3, "3"), _positive(3, "4")],
    "channels_last_block": [
        *(_real(4, "stem, gamma"), _sign(1, "depthwise"), _real(4, "norm"), _real(4, "down")),
    ],
    # Over tokens the gains of the first norm can only be scaled together.
    "mixer": [_sign(1, "stream"), _real(1, "norm1"), _real(5, "norm2")],
    "tri_plane": [_real(4, "planes"), _positive(5, "mix")],
}

_HEADS_OF_TWO = [_real(6, "query, key"), _real(6, "value")]
_TORCH_HEADS = [_real(4, "query, key"), _real(4, "value")]

_ATTENTION = {
    "multihead_attention": [_real(6, "embed"), *_HEADS_OF_TWO, _real(6, "out")],
    "encoder_post_norm": [
        *(_sign(1, "embed, positions"), *_TORCH_HEADS, _sign(1, "norm1"), _real(4, "norm2")),
    ],
    "encoder_pre_norm": [
        _sign(1, "stream"),
        *[*_TORCH_HEADS, _real(4, "norm1"), _real(4, "norm2"), _positive(3, "linear1")] * 2,
    ],
    # The last norm is read by the head alone; the others go on in the stream.
    "decoder": [
        *(_sign(1, "embed"), _real(4, "remember"), *_TORCH_HEADS, _sign(1, "norm1")),
        *(*_TORCH_HEADS, _sign(1, "norm2"), _positive(3, "linear1"), _real(4, "norm3")),
    ],
    "cross_attention": [
        *(_real(4, "embed"), _real(3, "remember"), *_TORCH_HEADS, _real(4, "out")),
    ],
    **{
        name: [_sign(1, "stream"), _real(5, "norm"), *_HEADS_OF_TWO]
        for name in ("packed_by_kind", "packed_by_head", "packed_by_head_chunked")
    },
    # A key dim scales all the queries of its head.
    "grouped_queries": [_real(5, "stream"), _real(6, "query, key"), _real(6, "value")],
    # A rotated pair scales as one.
    "grouped_queries_rotary": [_real(5, "stream"), _real(4, "pairs"), _real(8, "value")],
    "grouped_queries_partly_rotary": [
        *(_real(5, "stream"), _real(2, "pairs"), _real(4, "passing dims"), _real(8, "value")),
    ],
    "multi_query": [_real(5, "stream"), _real(2, "query, key"), _real(2, "value")],
    "multi_query_rotary": [_real(5, "stream"), _real(1, "pair"), _real(2, "value")],
    "alibi": [_real(5, "stream"), *_HEADS_OF_TWO],
    "relative_bias": [_real(5, "stream"), *_HEADS_OF_TWO],
    # q and k of a dim negated together; a dim of all q with its gain; gains of q against those of k
    "query_key_norm": [
        *(_real(5, "stream"), _sign(12, "query, key"), _sign(4, "query, query_norm")),
        *(_real(4, "query_norm, key_norm"), _real(12, "value")),
    ],
    "vision_transformer": [
        *(_sign(1, "stream"), _real(4, "norm1"), *_TORCH_HEADS, _real(4, "norm2")),
    ],
    # A constant in the stream keeps it from scaling.
    "fixed_positions": [_positive(3, "up")],
}

_RECURRENT = {
    # cell and hidden state of a unit with the rows of its candidate, not of its gates
    "lstm": [_sign(4, "cell")],
    "lstm_two_layers": [_sign(4, "cell"), _sign(4, "cell")],
    # The projected state has no activation.
    "lstm_projected": [_sign(4, "cell"), _real(2, "projection")],
    "bi_lstm": [_sign(3, "cell")] * 4,
    # state of a unit with the rows of its candidate
    "gru": [_sign(4, "cell")],
    "bi_gru": [_sign(4, "cell")] * 2,
    "gru_cell": [_sign(4, "cell")],
    "elman": [_sign(4, "start, into, again")],
    # rows into the depthwise convolution; what enters a state against what leaves it; and all that
    # leaves the scan (states and skip alike) against the last layer
    "selective_scan": [
        *(_real(5, "stream"), _real(4, "into"), _real(2, "rank"), _real(3, "enter, leave")),
        _real(1, "enter, skip, out"),
    ],
    # read by the same layer, once after ReLU and once after tanh
    "loop_of_the_data": [],
    "stacked_layers": [_real(5, "stream"), _positive(4, "up 0"), _positive(4, "up 1")],
    "written_in_place": [_positive(5, "first")],
}

_MIXTURES = {
    # RMSNorm takes no mean away: each neuron of the stream has its own sign.
    "gated_with_rms_norm": [_sign(5, "stream"), _real(5, "norm"), _real(4, "up, down")],
    "packed_gate": [_real(4, "value half")],
    "dense_experts": [_real(5, "stream"), _positive(12, "up")],
    "chosen_experts": [_real(5, "stream"), _positive(12, "up")],
    "expert_modules": [_real(5, "stream"), *[_positive(4, "experts")] * 3],
    # read by the tied head with the same factor: it must be its own inverse
    "tied_embedding": [_sign(4, "embedding"), _positive(3, "up")],
    "prelu": [_positive(5, "0"), _positive(4, "2")],
    # rows of the direction by themselves; their sign against that of the length
    "weight_norm": [
        *(_sign(5, "0"), _real(5, "0, direction")),
        *(_positive(4, "2"), _real(4, "2, direction")),
    ],
    "low_rank": [_positive(5, "first, up"), _real(2, "rank")],
    "set_network": [_positive(5, "phi"), _positive(4, "rho")],
    "equivariant_set_layers": [_positive(5, "0"), _positive(4, "1")],
    "hypernetwork": [_positive(4, "read"), _sign(5, "write")],
    "modulation": [_positive(4, "first, shift")],
    "message_passing": [_positive(4, "embed"), _positive(5, "message"), _positive(3, "update")],
    "fixed_frequencies": [_positive(5, "first")],
    "radial": [_sign(4, "first, centres")],
    "bilinear": [_sign(4, "left"), _sign(3, "right"), _positive(5, "join")],
    "outer_product": [_sign(4, "left"), _sign(3, "right")],
    # written and read by the same weight
    "tied_autoencoder": [],
}

EXPECTED_SCALES: dict[str, list[ScaleRow]] = {
    **_OLD,
    **_CONVOLUTION,
    **_ATTENTION,
    **_RECURRENT,
    **_MIXTURES,
}
