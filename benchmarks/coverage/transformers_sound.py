"""Types of transformers that read sound or time series."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.transformers_types import pretrained_types, spectra, waves

__all__ = ["ARCHITECTURES"]

#: Layers that turn a wave into features, and the convolution that stands for positions.
_WAVE = {
    "conv_dim": [16, 32],
    "conv_kernel": [10, 4],
    "conv_stride": [5, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 32,
}
_CODEC = {"num_filters": 4, "upsampling_ratios": [2, 2], "codebook_size": 8, "codebook_dim": 32}


def _spectra_and_tokens(*shape: int) -> dict[str, Tensor]:
    return {**spectra(*shape), "decoder_input_ids": torch.randint(3, 40, (2, 5))}


def _spectra_as_values(*shape: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, *shape)}


def _history(length: int) -> dict[str, Tensor]:
    return {
        "past_values": torch.rand(2, length) + 1,
        "past_time_features": torch.randn(2, length, 2),
        "past_observed_mask": torch.ones(2, length),
        "future_values": torch.rand(2, 4) + 1,
        "future_time_features": torch.randn(2, 4, 2),
    }


_CTC: dict[str, dict[str, Any]] = {
    "wav2vec2": _WAVE,
    "wav2vec2, layer norms": {
        "as": "wav2vec2",
        **_WAVE,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
    "wav2vec2-conformer": {**_WAVE, "conv_depthwise_kernel_size": 3},
    "wav2vec2-bert": {
        "feature_projection_input_dim": 8,
        "conv_depthwise_kernel_size": 3,
        "left_max_position_embeddings": 4,
        "right_max_position_embeddings": 4,
        "inputs": partial(spectra, 12, 8),
    },
    "hubert": _WAVE,
    "wavlm": {**_WAVE, "num_buckets": 8, "max_bucket_distance": 16},
    "unispeech": {**_WAVE, "num_ctc_classes": 40},
    "unispeech-sat": {**_WAVE, "num_ctc_classes": 40},
    "data2vec-audio": {**_WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    "sew": _WAVE,
    "sew-d": {**_WAVE, "position_buckets": 4},
    "lasr_ctc": {
        "encoder_config": {"subsampling_conv_channels": 16, "conv_kernel_size": 4},
        "inputs": partial(spectra, 32, 8),
    },
    "parakeet_ctc": {
        "encoder_config": {"subsampling_conv_channels": 16, "conv_kernel_size": 3},
        "inputs": partial(spectra, 32, 8),
    },
}

_SPEECH: dict[str, dict[str, Any]] = {
    "whisper": {"max_source_positions": 8, "inputs": partial(_spectra_and_tokens, 8, 16)},
    "speech_to_text": {
        "input_feat_per_channel": 8,
        "conv_channels": 32,
        "inputs": partial(_spectra_and_tokens, 16, 8),
    },
    "moonshine": {
        "encoder_num_key_value_heads": 4,
        "decoder_num_key_value_heads": 4,
        "inputs": lambda: {
            **waves(1200),
            "decoder_input_ids": torch.randint(3, 40, (2, 5)),
        },
    },
    "pop2piano": {
        "head": "Pop2PianoForConditionalGeneration",
        "inputs": lambda: {
            "inputs_embeds": torch.randn(2, 6, 32),
            "decoder_input_ids": torch.randint(3, 40, (2, 5)),
        },
    },
}

_OTHERS: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {
        "head": "AudioClassification",
        "max_length": 16,
        "frequency_stride": 2,
        "time_stride": 4,
        "inputs": partial(_spectra_as_values, 16, 8),
    },
    "encodec": {
        **_CODEC,
        "target_bandwidths": [1.5],
        "sampling_rate": 2000,
        "num_lstm_layers": 1,
        "head": "Model",
        "output": "audio_values",
        "inputs": lambda: {"input_values": torch.randn(2, 1, 64)},
    },
    "mimi": {
        **_CODEC,
        "upsample_groups": 32,
        "vector_quantization_hidden_dimension": 16,
        "codebook_dim": 16,
        "num_quantizers": 3,
        "head": "Model",
        "output": "audio_values",
        "inputs": lambda: {"input_values": torch.randn(2, 1, 64)},
    },
    "dac": {
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [2, 2],
        "upsampling_ratios": [2, 2],
        "n_codebooks": 2,
        "codebook_size": 8,
        "codebook_dim": 4,
        "head": "Model",
        "output": "audio_values",
        "inputs": lambda: {"input_values": torch.randn(2, 1, 64)},
    },
    "fastspeech2_conformer_hifigan": {
        "head": "FastSpeech2ConformerHifiGan",
        "model_in_dim": 8,
        "upsample_initial_channel": 16,
        "upsample_rates": [2, 2],
        "upsample_kernel_sizes": [4, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "inputs": lambda: {"spectrogram": torch.randn(2, 6, 8)},
    },
    "time_series_transformer": {
        "head": "Model",
        "prediction_length": 4,
        "context_length": 6,
        "lags_sequence": [1, 2],
        "num_time_features": 2,
        "output": "last_hidden_state",
        "inputs": partial(_history, 8),
    },
    "informer": {
        "head": "Model",
        "prediction_length": 4,
        "context_length": 6,
        "lags_sequence": [1, 2],
        "num_time_features": 2,
        "attention_type": "full",
        "output": "last_hidden_state",
        "inputs": partial(_history, 8),
    },
    "patchtst": {
        "head": "PatchTSTForPrediction",
        "num_input_channels": 3,
        "context_length": 12,
        "patch_length": 4,
        "patch_stride": 4,
        "prediction_length": 4,
        "loss": "mse",
        "output": "prediction_outputs",
        "inputs": lambda: {"past_values": torch.randn(2, 12, 3)},
    },
    "patchtsmixer": {
        "head": "PatchTSMixerForPrediction",
        "num_input_channels": 3,
        "context_length": 12,
        "patch_length": 4,
        "patch_stride": 4,
        "prediction_length": 4,
        "output": "prediction_outputs",
        "inputs": lambda: {"past_values": torch.randn(2, 12, 3)},
    },
    "decision_transformer": {
        "head": "Model",
        "state_dim": 5,
        "act_dim": 3,
        "max_ep_len": 16,
        "output": "action_preds",
        "inputs": lambda: {
            "states": torch.randn(2, 6, 5),
            "actions": torch.randn(2, 6, 3),
            "rewards": torch.randn(2, 6, 1),
            "returns_to_go": torch.randn(2, 6, 1),
            "timesteps": torch.arange(6).expand(2, 6).contiguous(),
            "attention_mask": torch.ones(2, 6),
        },
    },
}

ARCHITECTURES: list[Architecture] = [
    *pretrained_types("sound", "CTC", waves, _CTC),
    *pretrained_types("sound", "SpeechSeq2Seq", waves, _SPEECH),
    *pretrained_types("sound codecs and time series", "Model", waves, _OTHERS),
]
