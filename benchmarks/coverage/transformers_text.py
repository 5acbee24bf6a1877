"""Types of transformers that read text with dense layers: decoders, encoders, and both."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.transformers_types import (
    plain,
    pretrained_types,
    tokens,
    tokens_in_boxes,
    tokens_to_tokens,
)

__all__ = ["ARCHITECTURES"]

_DECODERS: dict[str, dict[str, Any]] = {
    **plain(
        "gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gptj codegen opt bloom mpt falcon biogpt"
        " openai-gpt xglm xlnet llama mistral ministral gemma gemma2 gemma3_text phi phi3 qwen2"
        " qwen3 cohere cohere2 glm glm4 granite nemotron olmo olmo2 olmo3 persimmon stablelm"
        " starcoder2 smollm3 helium exaone4 arcee apertus bitnet diffllama hunyuan_v1_dense"
        " seed_oss ernie4_5 nanochat vaultgemma modernbert-decoder moshi minicpm3 youtu"
    ),
    "ctrl": {"dff": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "cpmant": {"dim_ff": 32, "prompt_length": 4, "position_bias_num_buckets": 8},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 40,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.5, 0.0],
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
        "inputs": partial(tokens, 8),
    },
    "falcon, new decoder": {"as": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
}

_ENCODERS: dict[str, dict[str, Any]] = {
    **plain(
        "bert albert roberta roberta-prelayernorm camembert xlm-roberta xlm-roberta-xl electra"
        " ernie distilbert squeezebert megatron-bert deberta deberta-v2 convbert roformer"
        " nystromformer fnet ibert big_bird data2vec-text flaubert xlm esm nomic_bert modernbert"
        " eurobert yoso longformer tapas mra"
    ),
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "mpnet": {"relative_attention_num_buckets": 32},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "layoutlm": {"max_2d_position_embeddings": 32, "inputs": tokens_in_boxes},
    "funnel": {"block_sizes": [1, 1], "d_head": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 32},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "canine": {
        "head": "TokenClassification",
        "num_hash_functions": 4,
        "num_hash_buckets": 8,
        "local_transformer_stride": 4,
        "inputs": partial(tokens, 8),
    },
    "perceiver": {
        "num_latents": 6,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "qk_channels": 32,
        "v_channels": 32,
    },
    "splinter": {"head": "QuestionAnswering", "output": "start_logits"},
    "lilt": {
        "head": "TokenClassification",
        "hidden_size": 48,
        "max_2d_position_embeddings": 32,
        "inputs": tokens_in_boxes,
    },
}

_ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    **plain(
        "bart mbart blenderbot blenderbot-small pegasus pegasus_x bigbird_pegasus marian m2m_100"
        " mvp plbart prophetnet t5 mt5 umt5 longt5 t5gemma"
    ),
    "led": {
        "max_encoder_position_embeddings": 32,
        "max_decoder_position_embeddings": 32,
        "attention_window": 4,
        "inputs": partial(tokens_to_tokens, 8),
    },
    "fsmt": {"src_vocab_size": 40, "tgt_vocab_size": 40},
}

ARCHITECTURES: list[Architecture] = [
    *pretrained_types("text decoders", "CausalLM", tokens, _DECODERS),
    *pretrained_types("text encoders", "MaskedLM", tokens, _ENCODERS),
    *pretrained_types("text to text", "Seq2SeqLM", tokens_to_tokens, _ENCODER_DECODERS),
]
