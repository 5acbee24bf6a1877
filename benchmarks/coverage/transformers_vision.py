"""Types of transformers that read images or videos."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.transformers_types import (
    images,
    plain,
    pretrained_types,
    tokens,
    videos,
)

__all__ = ["ARCHITECTURES"]

_TWO_STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1]}
_SWIN = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2}
_PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
}

_CLASSIFIERS: dict[str, dict[str, Any]] = {
    **plain(
        "vit beit data2vec-vision dinov2 dinov2_with_registers ijepa vit_msn clip siglip metaclip_2"
    ),
    "deit": {"head": "DeiTForImageClassification"},
    "siglip2": {
        "vision_config": {"num_patches": 16},
        "inputs": lambda: {
            "pixel_values": torch.randn(2, 16, 48),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
            "spatial_shapes": torch.full((2, 2), 4),
        },
    },
    "convnext": {**_TWO_STAGES, "num_stages": 2, "patch_size": 2},
    "convnextv2": {**_TWO_STAGES, "num_stages": 2, "patch_size": 2},
    "resnet": {**_TWO_STAGES, "embedding_size": 8},
    "resnet, basic": {"as": "resnet", **_TWO_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "regnet": {**_TWO_STAGES, "embedding_size": 8, "groups_width": 8},
    "bit": {**_TWO_STAGES, "embedding_size": 8, "num_groups": 2},
    "focalnet": {
        "embed_dim": 16,
        **_TWO_STAGES,
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "swin": _SWIN,
    "swinv2": {**_SWIN, "pretrained_window_sizes": [0, 0]},
    "donut-swin": _SWIN,
    "hiera": {
        "embed_dim": 16,
        "image_size": [16, 16],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "depths": [1, 1],
        "num_heads": [2, 4],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, False],
    },
    "levit": {
        "head": "LevitForImageClassification",
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [16, 16, 32],
        "num_attention_heads": [2, 2, 4],
        "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
        "mlp_ratio": [2, 2, 2],
        "attention_ratio": [2, 2, 2],
        "inputs": partial(images, 64),
    },
    "pvt": {
        **_PYRAMID,
        "patch_sizes": [4, 2],
        "strides": [4, 2],
        "sequence_reduction_ratios": [2, 1],
        "image_size": 32,
        "inputs": partial(images, 32),
    },
    "pvt_v2": {**_PYRAMID, "sr_ratios": [2, 1]},
    "segformer": {**_PYRAMID, "sr_ratios": [2, 1]},
    "poolformer": {
        "num_encoder_blocks": 2,
        **_TWO_STAGES,
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "padding": [1, 1],
    },
    "cvt": {
        "embed_dim": [16, 32],
        "num_heads": [2, 4],
        "depth": [1, 2],
        "patch_sizes": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "mlp_ratio": [2.0, 2.0],
        "qkv_bias": [True, True],
        "cls_token": [False, True],
        "attention_drop_rate": [0.0, 0.0],
        "drop_rate": [0.0, 0.0],
        "drop_path_rate": [0.0, 0.0],
        "qkv_projection_method": ["dw_bn", "dw_bn"],
        "kernel_qkv": [3, 3],
        "padding_kv": [1, 1],
        "stride_kv": [2, 2],
        "padding_q": [1, 1],
        "stride_q": [1, 1],
    },
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
        "patch_size": 2,
        "expand_ratio": 2.0,
        "inputs": partial(images, 32),
    },
    "mobilevitv2": {
        "width_multiplier": 0.125,
        "n_attn_blocks": [1, 1, 1],
        "patch_size": 2,
        "inputs": partial(images, 64),
    },
    "mobilenet_v1": {"depth_multiplier": 0.03125, "min_depth": 4, "inputs": partial(images, 32)},
    "mobilenet_v2": {
        "depth_multiplier": 0.0625,
        "depth_divisible_by": 4,
        "min_depth": 4,
        "expand_ratio": 2.0,
        "inputs": partial(images, 32),
    },
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "depth_divisor": 4,
        "hidden_dim": 320,
        "image_size": 32,
        "inputs": partial(images, 32),
    },
    "swiftformer": {
        "depths": [1, 1, 1, 1],
        "embed_dims": [8, 16, 16, 32],
        "mlp_ratio": 2,
        "inputs": partial(images, 32),
    },
    "hgnet_v2": {
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 16],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 32],
        "stage_num_blocks": [1, 2],
        "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [2, 2],
        "hidden_sizes": [16, 32],
        "depths": [1, 2],
    },
    "textnet": {
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 16],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1], [1, 3]]],
        "conv_layer_strides": [[1], [2, 1]],
    },
    "imagegpt": {"head": "ImageGPTForImageClassification", "inputs": tokens},
}

_VIDEOS: dict[str, dict[str, Any]] = {
    "timesformer": {"num_frames": 4},
    "videomae": {"num_frames": 4},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 4, 4]},
    "vjepa2": {
        "crop_size": 16,
        "frames_per_clip": 4,
        "num_pooler_layers": 1,
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 4,
        "pred_num_hidden_layers": 1,
        "mlp_ratio": 2.0,
        "inputs": lambda: {"pixel_values_videos": videos()["pixel_values"]},
    },
}

_DENSE: dict[str, dict[str, Any]] = {
    "yolos": {"head": "ObjectDetection", "image_size": [16, 16], "num_detection_tokens": 4},
    "dpt": {
        "head": "DepthEstimation",
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
        "output": "predicted_depth",
    },
    "glpn": {
        "head": "DepthEstimation",
        **_PYRAMID,
        "num_encoder_blocks": 4,
        "depths": [1] * 4,
        "hidden_sizes": [8, 16, 16, 32],
        "patch_sizes": [3] * 4,
        "strides": [2] * 4,
        "num_attention_heads": [2] * 4,
        "mlp_ratios": [2] * 4,
        "sr_ratios": [2, 1, 1, 1],
        "decoder_hidden_size": 16,
        "output": "predicted_depth",
        "inputs": partial(images, 64),
    },
    "upernet": {
        "head": "SemanticSegmentation",
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "pool_scales": [1, 2],
        "auxiliary_in_channels": 16,
        "auxiliary_channels": 16,
        "inputs": partial(images, 64),
    },
    "vitdet": {"head": "Model", "pretrain_image_size": 16, "output": "last_hidden_state"},
    "dinov3_vit": {"head": "Model", "output": "last_hidden_state"},
    "vit_mae": {
        "head": "Model",
        "mask_ratio": 0.0,
        "output": "last_hidden_state",
        "inputs": lambda: {**images(), "noise": torch.rand(2, 16)},
    },
    "swin2sr": {
        "head": "ImageToImage",
        **_SWIN,
        "patch_size": 1,
        "upscale": 2,
        "upsampler": "pixelshuffledirect",
        "output": "reconstruction",
    },
    "depth_anything": {
        "head": "DepthEstimation",
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_ratio": 2,
            "image_size": 16,
            "patch_size": 4,
            "out_indices": [1, 2],
            "apply_layernorm": True,
            "reshape_hidden_states": False,
        },
        "reassemble_hidden_size": 32,
        "reassemble_factors": [2, 1],
        "neck_hidden_sizes": [8, 16],
        "fusion_hidden_size": 16,
        "head_hidden_size": 8,
        "output": "predicted_depth",
    },
}

ARCHITECTURES: list[Architecture] = [
    *pretrained_types("images", "ImageClassification", images, _CLASSIFIERS),
    *pretrained_types("videos", "VideoClassification", videos, _VIDEOS),
    *pretrained_types("dense predictions of images", "ImageClassification", images, _DENSE),
]
