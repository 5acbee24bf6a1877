"""Probes: learned inputs that every network is run on, and what its neurons answer, as features."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import lru_cache
from typing import Literal, Self

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch, Part, neurons_from_parts
from paramgraph.capture.program import Program
from paramgraph.capture.program_inputs import ProgramInput
from paramgraph.errors import BatchError, GraphError
from paramgraph.graph import ParamGraph

__all__ = ["Generator", "ProbeEncoder", "ProbePoints", "answers", "neuron_answers"]

Generator = Literal["free", "deep-linear"]
"""How probes are made: every number is learned by itself, or two linear maps make them."""


class ProbePoints(nn.Module):
    """M learned inputs for networks of any architecture.

    A probe is a function ``p(c, x)`` of the channel c (which input neuron) and the position x
    (pixel, token), so that one set serves inputs of all shapes, at any resolution:
    ``p(c, x) = table[c] + sum_k waves[c, k] * (cos(f_k x + a_k) - cos(a_k))``, x from -1 to 1 on
    each axis, 0 where there is one position. Channels beyond the table begin anew at another x.
    Inputs of whole numbers (token ids, masks) cannot be learned: they are fixed random draws, from
    the rows of the table that they are looked up in, or between the extremes of the example inputs.

    Args:
        num_probes: Number of probes M.
        generator: ``"free"`` learns the numbers above by themselves, tables drawn from U(-1, 1);
            ``"deep-linear"`` makes them from a learned vector per probe by two linear maps.
        num_channels: Channels in the table.
        num_waves: Waves per channel; without, all positions of a channel get the same value.
        latent_dim: Length of the learned vectors of ``"deep-linear"``, and between its maps.

    Raises:
        ValueError: Another generator, or no probes.

    Example:
        >>> sum(p.numel() for p in ProbePoints(64, num_channels=2, num_waves=0).parameters())
        128

    References:
        Kofinas et al. 2024, section 2.4 (free points, https://arxiv.org/abs/2403.12143); Kahana et
        al. 2024 (ProbeGen: deep linear generators, https://arxiv.org/abs/2410.10811).
    """

    frequency: Tensor
    phase: Tensor

    def __init__(
        self,
        num_probes: int,
        *,
        generator: Generator = "free",
        num_channels: int = 16,
        num_waves: int = 16,
        latent_dim: int = 32,
    ) -> None:
        super().__init__()
        if generator not in ("free", "deep-linear"):
            raise ValueError(f"generator must be 'free' or 'deep-linear', got {generator!r}.")
        if min(num_probes, num_channels) < 1:
            raise ValueError(
                f"num_probes and num_channels must be 1 or more, got {num_probes} and "
                f"{num_channels}."
            )
        self.num_probes = num_probes
        self.num_channels = num_channels
        self.num_waves = num_waves
        self.table: nn.Parameter | None = None
        self.waves: nn.Parameter | None = None
        self.maps: nn.Sequential | None = None
        wave_size = max(num_waves, 1) ** -0.5
        if generator == "free":
            self.table = nn.Parameter(torch.empty(num_probes, num_channels).uniform_(-1, 1))
            if num_waves:
                shape = (num_probes, num_channels, num_waves)
                self.waves = nn.Parameter(torch.empty(shape).uniform_(-wave_size, wave_size))
        else:
            self.latent = nn.Parameter(torch.randn(num_probes, latent_dim))
            num_made = num_channels * (1 + num_waves)
            first, second = nn.Linear(latent_dim, latent_dim), nn.Linear(latent_dim, num_made)
            self.maps = nn.Sequential(first, second)
            with torch.no_grad():  # what it makes is as large as free points
                nn.init.orthogonal_(first.weight)
                made = second.weight.view(num_channels, 1 + num_waves, latent_dim)
                made.normal_(std=(3 * latent_dim) ** -0.5)
                made[:, 1:] *= wave_size
        # Fixed, for the axes (turn of the table, three positions): slow to fast, all directions.
        source = torch.Generator().manual_seed(5)
        direction = nn.functional.normalize(torch.randn(num_waves, 4, generator=source), dim=1)
        speed = torch.logspace(math.log10(0.5), math.log10(5.0), num_waves)
        self.register_buffer("frequency", 2 * math.pi * speed[:, None] * direction)
        self.register_buffer("phase", 2 * math.pi * torch.rand(num_waves, generator=source))

    def forward(self, program: Program, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Inputs ``[M, *shape]`` for a network, in the order in which it takes them.

        Args:
            program: Of the network.
            dtype: Of the inputs that are not whole numbers.
        """
        inputs: list[Tensor] = []
        channel = 0
        rows = zip(program.inputs, program.input_shapes, program.input_axes, strict=True)
        for row, shape, axis in rows:
            if row.dtype.is_floating_point or row.dtype.is_complex:
                points = self._points(shape, axis, channel)
                # A complex input gets real probes.
                points = points.to(dtype if row.dtype.is_floating_point else row.dtype)
                channel += 1 if axis is None else shape[axis]
            else:
                points = self._draws(row, shape, len(inputs))
            inputs.append(points if row.has_samples else points[0])
        return tuple(inputs)

    def _points(self, shape: tuple[int, ...], axis: int | None, first: int) -> Tensor:
        """Values ``[M, *shape]``, with channels along ``axis``, numbered from ``first``."""
        places = shape if axis is None else shape[:axis] + shape[axis + 1 :]
        number = torch.arange(1 if axis is None else shape[axis], device=self.phase.device) + first
        table, waves = self._coefficients()
        row = number % self.num_channels
        values = table[:, row, None]
        if self.num_waves:
            turn = (number // self.num_channels).to(table.dtype)
            at = _grid(places).to(table)
            angle = at @ self.frequency[:, 1:].T + self.phase
            angle = angle + turn[:, None, None] * self.frequency[:, 0]
            basis = angle.cos() - self.phase.cos()
            values = values + torch.einsum("mck,cpk->mcp", waves[:, row], basis)
        values = values.expand(-1, -1, math.prod(places)).unflatten(2, places or (1,))
        if not places:
            values = values.squeeze(2)
        return values.squeeze(1) if axis is None else values.movedim(1, 1 + axis)

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        """Table ``[M, num_channels]`` and waves ``[M, num_channels, num_waves]``."""
        if self.maps is None:
            assert self.table is not None
            empty = self.table.new_zeros(*self.table.shape, 0)
            return self.table, empty if self.waves is None else self.waves
        made = self.maps(self.latent).unflatten(1, (self.num_channels, 1 + self.num_waves))
        return made[..., 0], made[..., 1:]

    def _draws(self, row: ProgramInput, shape: tuple[int, ...], number: int) -> Tensor:
        source = torch.Generator().manual_seed(number)
        least, most = row.whole
        drawn = torch.randint(least, most + 1, (self.num_probes, *shape), generator=source)
        return drawn.to(self.phase.device, row.dtype)


@lru_cache(maxsize=256)
def _grid(sizes: tuple[int, ...]) -> Tensor:
    """Coordinates ``[num_positions, 3]`` from -1 to 1; axes beyond the third count with it."""
    sizes = (*sizes[:2], math.prod(sizes[2:])) if len(sizes) > 3 else sizes
    lines = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(n) for n in sizes]
    lines += [torch.zeros(1)] * (3 - len(lines))
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).reshape(-1, 3)


def answers(
    part: Part, points: ProbePoints, *, std: bool, groups: Collection[int] | None = None
) -> list[Tensor | None]:
    """What the neurons of networks of one architecture say to probes.

    Args:
        part: The networks.
        points: The probes.
        std: Give standard deviations over positions, too.
        groups: Numbers of the neuron groups that are wanted, all when not given.

    Returns:
        For each neuron group ``[B, M, size, num_statistics]``; ``None`` where its values stand
        nowhere, or where it is not wanted.

    Raises:
        BatchError: The networks cannot be run on probes; the message says which, and why.
    """
    graph = part.graph
    try:
        program = _program(graph)
        inputs = points(program, part.values.neurons[0].dtype)
        parameters = graph.write_back(part.values)
        return program.activations(parameters, inputs, std=std, groups=groups)
    except GraphError as error:
        raise BatchError(
            f"cannot probe {graph.name!r}: {error} Read it with a metanetwork that has no probes."
        ) from error


def neuron_answers(batch: GraphBatch, points: ProbePoints, *, std: bool) -> tuple[Tensor, Tensor]:
    """What each neuron of a batch says to probes, as rows.

    Args:
        batch: The networks.
        points: The M probes.
        std: Give standard deviations over positions, too.

    Returns:
        Answers ``[N, M * num_statistics]``, 0 where a neuron has no values, and which have some
        ``[N, 1]``.

    Raises:
        BatchError: A network cannot be run on probes.
    """
    read: list[list[Tensor]] = []
    known: list[list[Tensor]] = []
    like = batch.neuron_values
    for part in batch.parts:
        found = answers(part, points, std=std)
        sizes = [group.size for group in part.graph.neuron_groups]
        shapes = [(part.values.num_networks, size) for size in sizes]
        read.append(
            [
                like.new_zeros(*shape, points.num_probes * (1 + std))
                if values is None
                else values.permute(0, 2, 3, 1).flatten(2)
                for values, shape in zip(found, shapes, strict=True)
            ]
        )
        known.append(
            [
                like.new_full((*shape, 1), values is not None)
                for values, shape in zip(found, shapes, strict=True)
            ]
        )
    return neurons_from_parts(batch, read), neurons_from_parts(batch, known)


def _program(graph: ParamGraph) -> Program:
    if not isinstance(graph.program, Program):
        why = graph.program or "it was not made by capture"
        raise GraphError(f"it cannot be run with other weights or inputs ({why}).")
    return graph.program


class ProbeEncoder(nn.Module):
    """Neuron features ``LayerNorm(Linear(answers of the neuron to M probes))``.

    Answers are inputs, hidden values behind their activation, and outputs; where a neuron has
    several positions, their mean and standard deviation. They go with the neurons when these are
    permuted, and change sign or size as these do.

    Args:
        num_probes: Number of probes M.
        dim: Width of the features.
        generator: See ``ProbePoints``.
        num_layers: Linear maps, counted by depth from the outputs (layers further from them share
            the last map); 1 for one map for all neurons.
        std: Whether standard deviations are read, by a map of their own.
        num_channels: See ``ProbePoints``.
        num_waves: See ``ProbePoints``.

    Raises:
        ValueError: ``num_layers`` is 0, or as for ``ProbePoints``.

    Example:
        >>> encoder = ProbeEncoder.published(64, 32)  # of 4 layers: 2-32-32-1
        >>> sum(p.numel() for p in encoder.parameters())
        8704

    References:
        Kofinas et al. 2024, section 2.4 (https://arxiv.org/abs/2403.12143).
    """

    def __init__(
        self,
        num_probes: int,
        dim: int,
        *,
        generator: Generator = "free",
        num_layers: int = 1,
        std: bool = True,
        num_channels: int = 16,
        num_waves: int = 16,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be 1 or more, got {num_layers}.")
        self.points = ProbePoints(
            num_probes, generator=generator, num_channels=num_channels, num_waves=num_waves
        )
        self.dim = dim
        self.std = std
        num_read = num_probes * (1 + std)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(num_read, dim), nn.LayerNorm(dim)) for _ in range(num_layers)
        )

    @classmethod
    def published(
        cls, num_probes: int, dim: int, *, num_inputs: int = 2, num_layers: int = 4
    ) -> Self:
        """The form of the paper: free points, one map per layer, means alone.

        Args:
            num_probes: Number of probes.
            dim: Width of the features.
            num_inputs: Inputs of the networks.
            num_layers: Layers of the networks, inputs and outputs among them.

        Example:
            >>> sum(p.numel() for p in ProbeEncoder.published(64, 64).parameters())
            17280
        """
        return cls(
            num_probes,
            dim,
            num_layers=num_layers,
            std=False,
            num_channels=num_inputs,
            num_waves=0,
        )

    def forward(self, batch: GraphBatch) -> Tensor:
        """Features ``[N, dim]``, 0 where a neuron has no values (rows of a table).

        Raises:
            BatchError: A network cannot be run on probes.
        """
        read, known = neuron_answers(batch, self.points, std=self.std)
        return self._features(batch, read) * known

    def _features(self, batch: GraphBatch, read: Tensor) -> Tensor:
        if len(self.layers) == 1:
            shared: Tensor = self.layers[0](read)
            return shared
        layer = batch.reverse_depth.clamp(max=len(self.layers) - 1)
        features = read.new_zeros(len(read), self.dim)
        for number, encode in enumerate(self.layers):
            rows = (layer == number).nonzero()[:, 0]
            features = features.index_copy(0, rows, encode(read[rows]))
        return features
