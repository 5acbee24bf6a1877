"""Signals of the operator metanetwork: what neurons know between sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Filled", "Signals"]


@dataclass
class Signals:
    """Features of all neurons, one tensor ``[n, dim]`` per level; ``None`` for zeros.

    Attributes:
        primal: h, scales like what readers see of a neuron.
        dual: g, scales like the gradient with respect to it.
        arrived: What last arrived forwards, before the activation; empty where it is not wanted.
        returned: What last came back; empty where it is not wanted.
        gain: Of ``Arrivals``, in the last sweep; ``None`` for 1.
    """

    primal: Sequence[Tensor | None]
    dual: Sequence[Tensor | None]
    arrived: Sequence[Tensor | None]
    returned: Sequence[Tensor | None]
    gain: Sequence[Tensor | None]

    @staticmethod
    def start(
        primal: Sequence[Tensor | None],
        dual: Sequence[Tensor | None],
        *,
        keeps_messages: bool = True,
    ) -> Signals:
        """Nothing has arrived yet; messages are kept where they are wanted."""
        none = [None] * len(primal)
        messages = none if keeps_messages else []
        return Signals(primal, dual, messages, messages, none)

    def filled(self, like: Sequence[Tensor]) -> Filled:
        """With zeros in place of ``None``; ``like`` has the shape of each level."""

        def fill(rows: Sequence[Tensor | None]) -> list[Tensor]:
            return [
                torch.zeros_like(known) if row is None else row
                for row, known in zip(rows, like, strict=False)
            ]

        return Filled(
            fill(self.primal), fill(self.dual), fill(self.arrived), fill(self.returned), self.gain
        )


@dataclass
class Filled:
    """``Signals`` without ``None`` (but for gains)."""

    primal: list[Tensor]
    dual: list[Tensor]
    arrived: list[Tensor]
    returned: list[Tensor]
    gain: Sequence[Tensor | None]
