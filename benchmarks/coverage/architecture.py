"""What a row of the report is about: one architecture, built when it is its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Architecture", "Inputs"]

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a network is called with: a tensor, a tuple of arguments, or a mapping of keyword ones."""


@dataclass(frozen=True)
class Architecture:
    """An architecture of the report.

    Attributes:
        name: Its name, once in its family.
        family: Heading under which it is listed.
        build: Makes the network and its example inputs; random numbers are seeded by the caller.
        output: Which output counts, as for ``paramgraph.capture``.
        expected: Says of a graph whether its free groups are those worked out by hand ("yes",
            "no", or "fewer" where a known limit of capture is met exactly); ``None`` where nobody
            worked them out.
    """

    name: str
    family: str
    build: Callable[[], tuple[nn.Module, Inputs]]
    output: str | int | None = None

    @property
    def title(self) -> str:
        """Family and name: unlike all others of the report."""
        return f"{self.family}: {self.name}"

    expected: Callable[[Any], str] | None = None
