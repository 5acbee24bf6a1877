"""Options that make each named metanetwork small, so that tests of all of them are quick."""

from __future__ import annotations

import inspect
from typing import Any

from paramgraph.nn import CONFIGS

__all__ = ["small_options"]

_WIDTHS = {"hidden_dim": 16, "node_dim": 16, "edge_dim": 8, "head_dim": 16, "num_probes": 8}
_FURTHER: dict[str, dict[str, Any]] = {
    "statnn": {"max_layers": 64},
    "dmc": {"num_layers": 2, "chunk_size": 32},
}


def small_options(name: str, **further: Any) -> dict[str, Any]:
    """Options for ``make_metanetwork(name, out_dim, ...)``.

    Args:
        name: Key of ``CONFIGS``.
        further: Options that win; ``level`` is left out where the class has one level only.
    """
    config = CONFIGS[name]
    accepted = inspect.signature(config.kind).parameters
    options = {key: value for key, value in _WIDTHS.items() if key in accepted}
    if not config.options.get("num_probes", 1 if "generator" in accepted else 0):
        options.pop("num_probes", None)  # without probes as published
    options |= _FURTHER.get(name, {}) | further
    if "level" not in accepted:
        options.pop("level", None)
    return options
