"""From what arrives at a neuron to what its readers see: waves, even functions, powers.

A signal arrives with the factor q of the neuron *before* its activation. Readers may see another
one: a sine whose bias is shifted by n half periods flips by (-1)^n although nothing that arrives
does; behind a cosine, abs or square the sign is lost; behind a square a factor counts twice. So a
signal is multiplied by a *gain* that carries the difference, which is what the derivative of the
activation does in the network itself:

| neuron | gain on messages | in place of the bias |
|---|---|---|
| sine, phase kept | ``cos(omega b)`` | ``sin(omega b)`` |
| cosine, phase kept | ``-sin(omega b)`` | ``cos(omega b)`` |
| even function | the signal itself (its direction, where scales are kept) | bias x gain |
| power k | size of the signal to the power k - 1 | bias x gain |
| any other | 1 | bias |

Backwards, a dual signal leaves through the same gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import GraphBatch
from paramgraph.nn.typed import FREE, NeuronTypes, unit
from paramgraph.structure import Activation

__all__ = ["Arrivals", "lifted_bias"]


@dataclass(frozen=True)
class Arrivals:
    """What the neurons of one level need to pass on signals of the right type.

    Attributes:
        wave: ``[n, 1]`` gain of waves whose phase is kept, 1 elsewhere; ``None`` without any.
        is_wave: ``[n, 1]``.
        is_even: ``[n, 1]`` whose sign is lost (and is kept track of); ``None`` without any.
        power: ``[n, 1]`` power of positive factors; ``None`` where all are 1.
        keeps_scale: Whether positive factors are kept track of.
    """

    wave: Tensor | None
    is_wave: Tensor
    is_even: Tensor | None
    power: Tensor | None
    keeps_scale: bool

    @property
    def is_plain(self) -> bool:
        """Whether all signals pass as they are."""
        return self.wave is None and self.is_even is None and self.power is None

    @staticmethod
    def of(batch: GraphBatch, types: NeuronTypes, *, phase: bool, scale: bool) -> list[Arrivals]:
        """For each level.

        Args:
            batch: The neurons.
            types: Before the activation.
            phase: Whether phases of waves are kept.
            scale: Whether positive factors are kept.
        """
        whole = types.kept(batch, ("arrivals", phase), lambda: _flags(batch, types, phase=phase))
        wave = _wave_gain(batch, whole[0]) if any(row.has_wave for row in whole[1]) else None
        waves = [None] * len(batch.levels) if wave is None else batch.split(wave[:, None])
        return [
            Arrivals(wave if row.has_wave else None, row.is_wave, row.is_even, row.power, scale)
            for row, wave in zip(whole[1], waves, strict=True)
        ]

    def is_plain_or_wave(self) -> Tensor:
        """``[n, 1]`` whether what readers see scales like what arrives, up to the phase."""
        keeps = torch.ones_like(self.is_wave)
        if self.is_even is not None:
            keeps = keeps & ~self.is_even
        return keeps if self.power is None else keeps & (self.power == 1)

    def gain(self, message: Tensor, bias: Tensor) -> Tensor | None:
        """What messages are multiplied by ``[n, 1]`` or ``[n, dim]``; ``None`` for 1.

        Args:
            message: What arrived ``[n, dim]``.
            bias: Signal of the biases ``[n, dim]``.
        """
        gain = self.wave
        if self.is_even is None and self.power is None:
            return gain
        arrived = message + torch.where(self.is_wave, 0.0, bias)
        size = (arrived.square().mean(1, keepdim=True) + _TINY).sqrt()
        if self.is_even is not None:
            root = arrived.shape[1] ** 0.5
            signal = root * unit(arrived) if self.keeps_scale else arrived / (1 + size)
            even = torch.where(self.is_even, signal, 1.0)
            gain = even if gain is None else gain * even
        if self.power is not None:
            power = size ** (self.power - 1)
            gain = power if gain is None else gain * power
        return gain

    def bias(self, bias: Tensor, gain: Tensor | None) -> Tensor:
        """The signal of the biases, as readers see it."""
        if gain is None or (self.is_even is None and self.power is None):
            return bias  # that of a wave is lifted already
        return bias * torch.where(self.is_wave, torch.ones_like(bias), gain)


_TINY = 1e-30


@dataclass(frozen=True)
class _Level:
    """What follows from the structure for the neurons of one level, ``[n, 1]`` each."""

    has_wave: bool
    is_wave: Tensor
    is_even: Tensor | None
    power: Tensor | None


def _flags(batch: GraphBatch, types: NeuronTypes, *, phase: bool) -> tuple[Tensor, list[_Level]]:
    """Which neurons ``[N]`` are waves whose phase is kept; facts of each level."""
    is_wave = (batch.phase != 0) if phase else torch.zeros_like(batch.phase, dtype=torch.bool)
    is_even = batch.is_even & (types.types != FREE) & ~is_wave
    power = torch.where((types.types > 1) & ~is_wave, batch.power, 1.0)
    levels = []
    for start, end in batch.levels:
        rows = slice(start, end)
        levels.append(
            _Level(
                bool(is_wave[rows].any()),
                is_wave[rows, None],
                is_even[rows, None] if bool(is_even[rows].any()) else None,
                power[rows, None] if bool((power[rows] != 1).any()) else None,
            )
        )
    return is_wave, levels


def _wave_gain(batch: GraphBatch, is_wave: Tensor) -> Tensor:
    """``[N]`` derivative of the waves whose phase is kept, 1 elsewhere."""
    angle = batch.phase.abs() * batch.neuron_values[:, 0]
    is_cosine = batch.activation == Activation.COSINE.index
    wave = torch.where(is_cosine, -angle.sin(), angle.cos())
    # A whole period only, behind an even function: the sign of a sine is lost once more.
    wave = torch.where((batch.phase < 0) & batch.is_even, angle.sin() * angle.cos(), wave)
    return torch.where(is_wave, wave, 1.0)


def lifted_bias(batch: GraphBatch, statistics: Tensor, wave_scale: Tensor) -> Tensor:
    """Biases at unit scale ``[N]``, those of waves as the wave itself: ``sin(omega b)``.

    Args:
        batch: The neurons.
        statistics: Unit-scale values ``[N, 3]``.
        wave_scale: Root mean square of the waves.
    """
    angle = batch.phase.abs() * batch.neuron_values[:, 0]
    is_cosine = batch.activation == Activation.COSINE.index
    wave = torch.where(is_cosine, angle.cos(), angle.sin())
    wave = torch.where((batch.phase < 0) & batch.is_even, angle.sin().square(), wave)
    return torch.where(batch.phase != 0, wave / wave_scale.to(wave), statistics[:, 0])
