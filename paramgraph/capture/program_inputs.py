"""Inputs of a program: what may stand there, and which of their axes numbers input neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from paramgraph.capture.program_places import Place, summarise
from paramgraph.capture.program_steps import refs_of

if TYPE_CHECKING:
    from paramgraph.capture.program import Program

__all__ = ["ProgramInput", "input_axis"]


@dataclass(frozen=True)
class ProgramInput:
    """One input tensor of a program.

    Attributes:
        number: Of the tensor among all tensors.
        name: Of the argument, "" where inputs are told by their order.
        dtype: Data type that was recorded.
        has_samples: Whether its first axis counts the samples; else it is the same for all.
        whole: Smallest and largest value of an input of whole numbers: rows of the table that it
            is looked up in, or what was recorded.
    """

    number: int
    name: str
    dtype: torch.dtype
    has_samples: bool
    whole: tuple[int, int] = (0, 0)


def input_axis(program: Program, number: int) -> int | None:
    """Which axis of a sample numbers input neurons, ``None`` where none does.

    That along which the network has input neurons before it reads any weight. It may have moved,
    merged or split axes by then, so numbers that count along each axis in turn are sent through.
    An axis by itself always numbers them.

    Args:
        program: Of the network.
        number: Which of its inputs.
    """
    row, shape = program.inputs[number], program.input_shapes[number]
    if len(shape) == 1:
        return 0
    weights = {n for n, _, _ in program.parameters}
    places = [place for place in program.places if place is not None]
    for place in places:
        if place.number == row.number and len(place.neurons) == 1:
            return place.neurons[0][0] - row.has_samples
    for place in places:
        read = {n for step in program.plan((place.number,))[0] for n in refs_of(step.args)}
        if row.number not in read or not read.isdisjoint(weights):
            continue
        for axis, length in enumerate(shape):
            if length > 1 and _counts_along(program, place, number, axis):
                return axis
    return None


def _counts_along(program: Program, place: Place, number: int, axis: int) -> bool:
    """Whether values of a place differ between neurons alone when an input counts along an axis."""
    like = torch.zeros((), dtype=program.dtype)
    size = program.batch_size
    samples = []
    for one, (row, shape) in enumerate(zip(program.inputs, program.input_shapes, strict=True)):
        dtype = like.dtype if row.dtype.is_floating_point else row.dtype
        sample = torch.zeros(shape, dtype=dtype)
        if one == number:
            lengths = [-1 if i == axis else 1 for i in range(len(shape))]
            sample = sample + torch.arange(shape[axis]).reshape(lengths).to(dtype)
        samples.append(sample.expand(size, *shape) if row.has_samples else sample)
    unread = [like] * len(program.parameters)
    values = program.values(unread, samples, size, (place.number,), like)[place.number]
    found = summarise(values, place, program.samples[place], size, size, std=True)
    mean, deviation = found[0].double().unbind(-1)
    return len(mean) > 1 and bool(mean.diff().ne(0).all()) and float(deviation.max()) < 1e-3
