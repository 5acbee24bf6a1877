"""Small inputs for a network of ``transformers``, made from its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["example_inputs"]

_LENGTH = 6  # tokens
_SAMPLES = 4000  # of sound, a quarter of a second


def example_inputs(network: nn.Module) -> dict[str, Tensor] | None:
    """Random inputs by name on which the network runs, a batch of two if it takes one.

    Args:
        network: A network of ``transformers``.

    Returns:
        None if the network runs on none of the inputs that we know how to make.
    """
    for batch in (2, 1):
        for inputs in _guesses(network, batch):
            try:
                with torch.no_grad():
                    network(**inputs)
            except Exception:  # whatever a guess that does not fit makes its code do
                continue
            return inputs
    return None


def _guesses(network: nn.Module, batch: int) -> Iterator[dict[str, Tensor]]:
    config: Any = network.config
    main = str(getattr(network, "main_input_name", "input_ids"))
    takes = inspect.signature(network.forward).parameters
    generator = torch.Generator().manual_seed(0)
    if main == "input_ids":
        tokens = {"input_ids": _tokens(config, batch, generator)}
        if "pixel_values" in takes:
            yield {**tokens, "pixel_values": _image(config, batch, generator)}
        if "decoder_input_ids" in takes:
            yield {**tokens, "decoder_input_ids": _tokens(config, batch, generator)}
        yield tokens
    elif main == "pixel_values":
        image = {"pixel_values": _image(config, batch, generator)}
        if "input_ids" in takes:
            yield {**image, "input_ids": _tokens(config, batch, generator)}
        if "decoder_input_ids" in takes:
            yield {**image, "decoder_input_ids": _tokens(config, batch, generator)}
        yield image
    else:
        for shape in _sounds(config):
            sound = {main: torch.randn(batch, *shape, generator=generator)}
            if "decoder_input_ids" in takes:
                yield {**sound, "decoder_input_ids": _tokens(config, batch, generator)}
            yield sound


def _setting(config: Any, *names: str) -> Any:
    """The first of these settings, here or in the configuration of a part."""
    parts = ("text_config", "vision_config", "audio_config", "encoder", "decoder")
    for part in (config, *(getattr(config, name, None) for name in parts)):
        for name in names:
            value = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
            if value is not None:
                return value
    return None


def _tokens(config: Any, batch: int, generator: torch.Generator) -> Tensor:
    """Tokens without a special meaning, as far as there are any."""
    size = int(_setting(config, "vocab_size") or 2)
    most = _setting(config, "max_position_embeddings", "n_positions")
    length = min(_LENGTH, int(most)) if most else _LENGTH
    special = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        value = _setting(config, name)
        special.update(value if isinstance(value, list) else [value])
    allowed = torch.tensor([t for t in range(min(size, 10_000)) if t not in special] or [0])
    chosen = torch.randint(0, len(allowed), (batch, length), generator=generator)
    return allowed[chosen]


def _image(config: Any, batch: int, generator: torch.Generator) -> Tensor:
    size = _setting(config, "image_size", "input_size") or 32
    height, width = size[-2:] if isinstance(size, list | tuple) else (size, size)
    channels = _setting(config, "num_channels", "in_channels") or 3
    return torch.randn(batch, int(channels), int(height), int(width), generator=generator)


def _sounds(config: Any) -> Iterator[tuple[int, ...]]:
    bins = int(_setting(config, "num_mel_bins", "input_feat_per_channel") or 80)
    positions = _setting(config, "max_source_positions")
    if positions:
        yield bins, 2 * int(positions)
    if _setting(config, "max_length") and _setting(config, "patch_size"):
        yield int(_setting(config, "max_length")), bins
    yield (_SAMPLES,)
    yield 64, bins
    yield bins, 64
