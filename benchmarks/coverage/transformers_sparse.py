"""Types of transformers with experts or with a state: mixtures, state spaces, linear attention."""

from __future__ import annotations

from typing import Any

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.transformers_types import (
    plain,
    pretrained_types,
    tokens,
    tokens_to_tokens,
)

__all__ = ["ARCHITECTURES"]

#: Experts as one batched product. The default of transformers (``grouped_mm``) has no float64.
_BATCHED: dict[str, Any] = {"experts_implementation": "batched_mm"}

_EXPERTS: dict[str, dict[str, Any]] = {
    **plain(
        "mixtral qwen2_moe qwen3_moe olmoe deepseek_v2 deepseek_v3 gpt_oss llama4_text phimoe"
        " granitemoe granitemoeshared glm4_moe dots1 ernie4_5_moe hunyuan_v1_moe minimax_m2"
        " flex_olmo aria_text afmoe exaone_moe solar_open doge"
    ),
    "jetmoe": {"kv_channels": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "longcat_flash": {"expert_ffn_hidden_size": 32, "zero_expert_num": 2},
}

#: The same layers computed in the two other ways that transformers knows.
_OTHER_IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    f"{name}, {implementation}": {"as": name, "experts_implementation": implementation}
    for implementation in ("eager", "grouped_mm")
    for name in ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss")
}

_STATES: dict[str, dict[str, Any]] = {
    **plain("mamba falcon_mamba rwkv xlstm minimax"),
    "mamba2": {"head_dim": 8, "num_heads": 8, "n_groups": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "adapter_rank": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe", "mlp"],
        "ssm_state_size": 4,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 4, "lru_width": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "q_lora_rank": None,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


def _with_batched_experts(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**_BATCHED, **overrides} for name, overrides in table.items()}


ARCHITECTURES: list[Architecture] = [
    *pretrained_types("mixtures of experts", "CausalLM", tokens, _with_batched_experts(_EXPERTS)),
    *pretrained_types(
        "mixtures of experts",
        "Seq2SeqLM",
        tokens_to_tokens,
        {"switch_transformers": {}, "nllb-moe": {}},
    ),
    *pretrained_types("mixtures of experts", "CausalLM", tokens, _OTHER_IMPLEMENTATIONS),
    *pretrained_types(
        "state spaces and linear attention", "CausalLM", tokens, _with_batched_experts(_STATES)
    ),
]
