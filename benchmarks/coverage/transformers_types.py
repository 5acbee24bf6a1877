"""From a row of a table to an architecture: model types of transformers with tiny random weights.

A table maps a model type (the name that transformers gives it) to what its configuration needs
beyond ``SIZES``. Nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.tiny_configs import config_class_of, tiny_config

__all__ = [
    "images",
    "plain",
    "pretrained_types",
    "spectra",
    "tokens",
    "tokens_and_images",
    "tokens_in_boxes",
    "tokens_to_tokens",
    "videos",
    "waves",
]

Table = Mapping[str, Mapping[str, Any]]
MakeInputs = Callable[[], dict[str, Any]]


def plain(names: str) -> dict[str, dict[str, Any]]:
    """Rows of types that need nothing beyond the general sizes."""
    return {name: {} for name in names.split()}


def pretrained_types(
    family: str, head: str, inputs: MakeInputs, table: Table, *, output: str | int | None = None
) -> list[Architecture]:
    """Architectures of one head and one kind of inputs.

    Args:
        family: Heading in the report.
        head: The network: ``CausalLM`` for ``AutoModelForCausalLM`` and so on, ``Model`` for
            ``AutoModel``, or the name of a class of transformers.
        inputs: Makes the keyword arguments of the network.
        table: Model type to overrides. Four keys are no part of the configuration: ``head``,
            ``inputs`` and ``output`` replace those of the table, ``as`` is the model type of a
            variant.
        output: Which output counts; by default the logits.
    """
    rows = []
    for name, row in table.items():
        overrides = dict(row)
        counted = overrides.pop("output", output)
        build = functools.partial(
            _build,
            overrides.pop("as", name),
            overrides.pop("head", head),
            overrides.pop("inputs", inputs),
            overrides,
        )
        rows.append(Architecture(name, family, build, counted))
    return rows


def _build(
    model_type: str, head: str, inputs: MakeInputs, overrides: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    config = tiny_config(config_class_of(model_type), overrides)
    if head == "Model":
        network = transformers.AutoModel.from_config(config)
    elif hasattr(transformers, f"AutoModelFor{head}"):
        network = getattr(transformers, f"AutoModelFor{head}").from_config(config)
    else:
        network = getattr(transformers, head)(config)
    _enliven(network)
    return network.eval(), inputs()


def _enliven(network: nn.Module) -> None:
    """Enlarge weights so that signals survive: a check on outputs of 1e-40 would say nothing.

    The usual 0.02 suits widths of thousands only, and the usual gain of a branch (1e-6) hides it.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim and parameter.numel() and parameter.is_floating_point():
                size = parameter.square().mean().sqrt()
                # The two makes up for what ReLU removes.
                wanted = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 1.0
                if 0 < size < wanted:
                    parameter.mul_(wanted / size)


def tokens(length: int = 6) -> dict[str, Tensor]:
    """A batch of sentences; ids below 3 are special."""
    return {"input_ids": torch.randint(3, 40, (2, length))}


def tokens_to_tokens(length: int = 6) -> dict[str, Tensor]:
    """Sentences for an encoder and a decoder."""
    return {**tokens(length), "decoder_input_ids": torch.randint(3, 40, (2, 5))}


def tokens_in_boxes() -> dict[str, Tensor]:
    """Sentences with the place of each word on a page, two corners of a box."""
    corners = torch.randint(0, 16, (2, 6, 2))
    return {**tokens(), "bbox": torch.cat([corners, corners + torch.randint(1, 16, (2, 6, 2))], -1)}


def images(size: int = 16, channels: int = 3) -> dict[str, Tensor]:
    """A batch of square images."""
    return {"pixel_values": torch.randn(2, channels, size, size)}


def videos(frames: int = 4, size: int = 16) -> dict[str, Tensor]:
    """A batch of short videos."""
    return {"pixel_values": torch.randn(2, frames, 3, size, size)}


def tokens_and_images(size: int = 16) -> dict[str, Tensor]:
    """As many sentences as images."""
    return {**tokens(), **images(size)}


def waves(length: int = 400) -> dict[str, Tensor]:
    """A batch of sounds as samples over time."""
    return {"input_values": torch.randn(2, length)}


def spectra(*shape: int) -> dict[str, Tensor]:
    """A batch of sounds as features over time."""
    return {"input_features": torch.randn(2, *shape)}
