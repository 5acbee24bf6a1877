"""Tiny configurations of transformers: sizes by the names of attributes, the same for every type.

A configuration class names its sizes in one of a few ways (``hidden_size``, ``d_model``,
``n_embd``); ``SIZES`` gives each name its value. What a type needs besides stands in its row of the
tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["SIZES", "config_class_of", "tiny_config"]

_WIDTH, _HEADS, _LAYERS, _VOCABULARY = 32, 4, 2, 40

#: Sizes coincide on purpose (a width of 32 everywhere): nothing may be told apart by its size.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        "hidden_size d_model n_embd embed_dim embedding_size emb_dim dim model_dim projection_dim"
        " hidden_dim text_hidden_size".split(),
        _WIDTH,
    ),
    **dict.fromkeys(
        "intermediate_size d_ff ffn_dim ffn_hidden_size encoder_ffn_dim decoder_ffn_dim n_inner"
        " moe_intermediate_size moe_shared_expert_intermediate_size shared_expert_intermediate_size"
        " shared_intermediate_size d_inner dense_intermediate_size mlp_dim"
        " feed_forward_size".split(),
        _WIDTH,
    ),
    **dict.fromkeys(
        "num_attention_heads num_heads n_head n_heads encoder_attention_heads"
        " decoder_attention_heads attention_heads decoder_num_attention_heads"
        " encoder_num_attention_heads".split(),
        _HEADS,
    ),
    "num_key_value_heads": 2,
    **dict.fromkeys("head_dim d_kv v_head_dim attention_head_size dim_head".split(), 8),
    **dict.fromkeys(
        "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers layers depth"
        " num_decoder_layers num_encoder_layers encoder_num_hidden_layers"
        " decoder_num_hidden_layers".split(),
        _LAYERS,
    ),
    **dict.fromkeys("vocab_size n_vocab".split(), _VOCABULARY),
    **dict.fromkeys(
        "max_position_embeddings n_positions max_source_positions max_target_positions"
        " n_ctx max_seq_len".split(),
        32,
    ),
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    # Experts: four, of which two read each token.
    **dict.fromkeys(
        "num_experts num_local_experts n_routed_experts moe_num_experts n_experts".split(), 4
    ),
    **dict.fromkeys("num_experts_per_tok moe_topk moe_k num_experts_per_token top_k".split(), 2),
    **dict.fromkeys("n_shared_experts num_shared_experts".split(), 1),
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Attention with low-rank queries and keys.
    **dict.fromkeys("q_lora_rank kv_lora_rank".split(), 16),
    **dict.fromkeys("qk_nope_head_dim qk_rope_head_dim".split(), 8),
    # State spaces and linear attention.
    **dict.fromkeys("state_size mamba_d_state".split(), 4),
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_expand": 2,
    "mamba_n_groups": 2,
    **dict.fromkeys("chunk_size mamba_chunk_size".split(), 4),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys("linear_key_head_dim linear_value_head_dim".split(), 8),
    # Images and sound.
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "num_mel_bins": 8,
    "relative_attention_num_buckets": 8,
    "rotary_dim": 4,
    "sliding_window": 16,
    "use_cache": False,
}


def config_class_of(model_type: str) -> type:
    """The configuration class of a model type of transformers."""
    from transformers import AutoConfig

    return type(AutoConfig.for_model(model_type))


def tiny_config(config_class: type, overrides: Mapping[str, Any] | None = None) -> Any:
    """Configure a type with tiny sizes.

    Args:
        config_class: A configuration class of transformers.
        overrides: Values for this type. A mapping for the name of a part (``text_config``) holds
            the overrides of that part, and its ``model_type`` where the type leaves this open.

    Returns:
        The configuration, its parts configured in the same way.
    """
    overrides = dict(overrides or {})
    names = {field.name for field in dataclasses.fields(config_class)}
    values = {
        field.name: SIZES[field.name]
        for field in dataclasses.fields(config_class)
        if field.name in SIZES and not isinstance(field.default, list | tuple)
    }
    if "kv_lora_rank" in names:  # keys are projected from one low rank, so each head has its own
        values["num_key_value_heads"] = _HEADS
    for part, part_class in getattr(config_class, "sub_configs", {}).items():
        chosen = dict(overrides.pop(part, {}))
        if "model_type" in chosen:
            part_class = config_class_of(chosen.pop("model_type"))
        if isinstance(part_class, type) and dataclasses.is_dataclass(part_class):
            values[part] = tiny_config(part_class, chosen)
    return config_class(**{**values, **overrides})
