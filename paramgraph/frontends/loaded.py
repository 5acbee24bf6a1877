"""What a front end returns: a network and inputs to run it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

__all__ = ["ExampleInputs", "LoadedNetwork"]

ExampleInputs = tuple[Any, ...] | Mapping[str, Any]
"""Positional or keyword arguments of one call of the network."""


class LoadedNetwork(NamedTuple):
    """A network read from a file, in evaluation mode, and example inputs where the file tells them.

    Attributes:
        network: The module; its parameters have the names that the file gives them.
        example_inputs: What ``capture`` runs it on, or None if the file does not say.

    Example:
        >>> loaded = LoadedNetwork(nn.Linear(2, 1), None)
        >>> loaded.network.out_features, loaded.example_inputs
        (1, None)
    """

    network: nn.Module
    example_inputs: ExampleInputs | None
