"""Types of transformers that read text together with images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.transformers_types import (
    images,
    plain,
    pretrained_types,
    tokens,
    tokens_and_images,
    tokens_in_boxes,
)

__all__ = ["ARCHITECTURES"]

_IMAGE_TOKEN = 39


def _prompt(num_image_tokens: int, size: int = 16) -> dict[str, Tensor]:
    """Sentences in which an image takes the place of the first tokens."""
    words = torch.randint(3, _IMAGE_TOKEN, (2, 5))
    picture = torch.full((2, num_image_tokens), _IMAGE_TOKEN)
    return {"input_ids": torch.cat([picture, words], 1), **images(size)}


def _regions() -> dict[str, Tensor]:
    """Sentences with features of four regions of an image."""
    return {
        **tokens(),
        "visual_feats": torch.randn(2, 4, 32),
        "visual_pos": torch.rand(2, 4, 4),
    }


_TOWERS: dict[str, dict[str, Any]] = {
    **plain("clip siglip metaclip_2 chinese_clip altclip"),
    "groupvit": {
        "head": "Model",
        "projection_intermediate_dim": 32,
        "vision_config": {
            "depths": [1, 1],
            "num_group_tokens": [4, 0],
            "num_output_groups": [4, 4],
        },
    },
    "blip": {"head": "BlipForImageTextRetrieval", "output": "itm_score"},
    "clipseg": {
        "head": "CLIPSegForImageSegmentation",
        "output": None,
        "extract_layers": [0, 1],
        "reduce_dim": 16,
        "decoder_intermediate_size": 16,
    },
    "owlvit": {"head": "OwlViTForObjectDetection", "output": None},
}

_GENERATORS: dict[str, dict[str, Any]] = {
    "llava": {
        "image_token_id": _IMAGE_TOKEN,
        "vision_config": {"model_type": "clip_vision_model"},
        "text_config": {"model_type": "llama"},
        "inputs": partial(_prompt, 16),
    },
    "vipllava": {
        "image_token_id": _IMAGE_TOKEN,
        "vision_feature_layers": [-1, -2],
        "vision_config": {"model_type": "clip_vision_model"},
        "text_config": {"model_type": "llama"},
        "inputs": partial(_prompt, 16),
    },
    "paligemma": {
        "image_token_id": _IMAGE_TOKEN,
        "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"model_type": "gemma"},
        "inputs": partial(_prompt, 16),
    },
    "gemma3": {
        "image_token_id": _IMAGE_TOKEN,
        "mm_tokens_per_image": 4,
        "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"model_type": "gemma3_text"},
        "inputs": partial(_prompt, 4),
    },
    "idefics3": {
        "image_token_id": _IMAGE_TOKEN,
        "scale_factor": 2,
        "text_config": {"model_type": "llama"},
        "inputs": lambda: {
            **_prompt(4),
            "pixel_values": torch.randn(2, 1, 3, 16, 16),
        },
    },
    "git": {"head": "CausalLM", "inputs": tokens_and_images},
    "got_ocr2": {
        "image_token_id": _IMAGE_TOKEN,
        "vision_config": {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1]},
        "text_config": {"model_type": "qwen2"},
        "inputs": partial(_prompt, 1),
    },
}

_FUSED: dict[str, dict[str, Any]] = {
    "visual_bert": {
        "head": "VisualBertForVisualReasoning",
        "visual_embedding_dim": 32,
        "inputs": lambda: {**tokens(), "visual_embeds": torch.randn(2, 4, 32)},
    },
    "lxmert": {
        "head": "LxmertForQuestionAnswering",
        "l_layers": 1,
        "x_layers": 1,
        "r_layers": 1,
        "visual_feat_dim": 32,
        "num_qa_labels": 5,
        "output": "question_answering_score",
        "inputs": _regions,
    },
    "layoutlmv3": {
        "head": "TokenClassification",
        "hidden_size": 48,
        "coordinate_size": 8,
        "shape_size": 8,
        "max_2d_position_embeddings": 32,
        "input_size": 16,
        "rel_pos_bins": 8,
        "rel_2d_pos_bins": 8,
        "inputs": lambda: {**tokens_in_boxes(), **images()},
    },
}

ARCHITECTURES: list[Architecture] = [
    *pretrained_types(
        "text and images",
        "ZeroShotImageClassification",
        tokens_and_images,
        _TOWERS,
        output="logits_per_image",
    ),
    *pretrained_types("text and images", "ImageTextToText", tokens_and_images, _GENERATORS),
    *pretrained_types("text and images", "Model", tokens_and_images, _FUSED),
]
