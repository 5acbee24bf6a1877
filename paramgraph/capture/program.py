"""A captured network as a program: the same computation for other weights and other inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from paramgraph.capture.program_inputs import ProgramInput, input_axis
from paramgraph.capture.program_operations import run_step
from paramgraph.capture.program_places import Place, sample_factor, summarise
from paramgraph.capture.program_steps import Step, Steps, at, live, refs_of
from paramgraph.capture.running import ExampleInputs, output_tensors
from paramgraph.errors import GraphError

__all__ = ["Program"]


@dataclass(frozen=True, eq=False)
class Program:
    """What a network computes, without its weights; made by ``capture``, kept in ``ParamGraph``.

    The operations of one run, each without side effects. Where a run on one sample more did the
    same operations and only lengths differed, they run for any number of samples; else in pieces of
    as many samples as ``capture`` was given, as if these were separate calls. Operations are
    vectorised over networks (``torch.func.vmap``).

    Attributes:
        name: Of the network.
        steps: Its operations.
        places: Where the values of each neuron group stand, ``None`` where nowhere.
        parameters: Number, names and shape of each parameter that is read.
        inputs: Its inputs, in order.
        outputs: Numbers of the output tensors.
        batch_size: Number of samples that were recorded.
        dtype: Floating type that was recorded; it runs in that of the given parameters.

    Example:
        >>> import paramgraph as pg
        >>> graph = pg.capture(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> graph.program.input_shapes, [step.operation for step in graph.program.steps.steps]
        (((3,),), ['aten.t.default', 'aten.addmm.default'])
    """

    name: str
    steps: Steps
    places: tuple[Place | None, ...]
    parameters: tuple[tuple[int, tuple[str, ...], tuple[int, ...]], ...]
    inputs: tuple[ProgramInput, ...]
    outputs: tuple[int, ...]
    batch_size: int
    dtype: torch.dtype
    _plans: dict[tuple[int, ...], tuple[list[Step], list[int], list[list[int]]]] = field(
        default_factory=dict, repr=False
    )

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one sample of each input, or of all of it where it is the same for all."""
        shapes = [(row, self.steps.shapes[row.number]) for row in self.inputs]
        return tuple(tuple(at(shape[row.has_samples :], 1)) for row, shape in shapes)

    @cached_property
    def input_axes(self) -> tuple[int | None, ...]:
        """Which axis of a sample of each input numbers input neurons, ``None`` where none does."""
        return tuple(input_axis(self, number) for number in range(len(self.inputs)))

    @cached_property
    def digest(self) -> str:
        """Hash of all that is computed: equal for two captures of one function of the weights."""
        targets = {*self.outputs, *(place.number for place in self.places if place is not None)}
        steps = live(self.steps.steps, targets)
        read = {number for step in steps for number in refs_of(step.args)} | set(self.outputs)
        places = [place and self._without_samples(place) for place in self.places]
        inputs = [(row, self.steps.shapes[row.number]) for row in self.inputs]
        flexible = self.steps.is_flexible or self.batch_size
        shown = (steps, places, self.parameters, inputs, self.outputs, flexible)
        hashed = hashlib.sha256(repr(shown).encode())
        for number, tensor in sorted(self.steps.constants.items()):
            if number in read:
                hashed.update(repr((number, tensor.dtype, tuple(tensor.shape))).encode())
                plain = tensor.detach().cpu().contiguous().reshape(-1)
                hashed.update(plain.view(torch.uint8).numpy().tobytes())
        return hashed.hexdigest()[:16]

    def _without_samples(self, place: Place) -> object:
        """A place in words that do not depend on how many samples were recorded."""
        sample = self.samples[place]
        sizes = [list(axis) for axis in place.sizes]
        if sample is not None:
            sizes[sample[0]][sample[1]] //= self.batch_size
        return place.number, place.index, sizes, place.neurons, sample

    def run(self, parameters: Mapping[str, Tensor], inputs: ExampleInputs) -> list[Tensor]:
        """Output tensors of B networks, ``[B, *shape]`` each.

        Args:
            parameters: Stacked ``[B, *shape]``, as from ``graph.write_back``.
            inputs: The inputs of all networks, like those that ``capture`` was given.

        Raises:
            GraphError: Parameters or inputs do not fit, or the network is no fixed program.
        """
        return self._map(
            parameters, inputs, self.outputs, lambda values, _: [values[n] for n in self.outputs]
        )

    def activations(
        self,
        parameters: Mapping[str, Tensor],
        inputs: ExampleInputs,
        *,
        std: bool = False,
        groups: Collection[int] | None = None,
    ) -> list[Tensor | None]:
        """For each neuron group the values that its readers see, after its activation.

        Args:
            parameters: Stacked ``[B, *shape]``, as from ``graph.write_back``.
            inputs: M samples for all networks.
            std: For each neuron the mean and the standard deviation over positions (pixels,
                tokens), not only the mean.
            groups: Numbers of the groups that are wanted, all when not given; only what these
                depend on is computed.

        Returns:
            For each group ``[B, M, size, num_statistics]``; ``None`` where no tensor of the network
            holds its values (rows of a table, hubs), or where they are not wanted.

        Raises:
            GraphError: Parameters or inputs do not fit, or the network is no fixed program.
        """
        chosen = [
            place if groups is None or number in groups else None
            for number, place in enumerate(self.places)
        ]
        held = [place for place in chosen if place is not None]

        def collect(values: Mapping[int, Tensor], num_samples: int) -> list[Tensor]:
            def of(place: Place) -> Tensor:
                sample = self.samples[place]
                tensor = values[place.number]
                return summarise(tensor, place, sample, self.batch_size, num_samples, std=std)

            return [of(place) for place in held]

        if not held:
            return [None] * len(chosen)
        targets = tuple(dict.fromkeys(place.number for place in held))
        found = iter(self._map(parameters, inputs, targets, collect))
        return [None if place is None else next(found) for place in chosen]

    @cached_property
    def samples(self) -> dict[Place, tuple[int, int] | None]:
        """For each place the axis and the factor that count the samples."""
        shapes, flexible = self.steps.shapes, self.steps.is_flexible
        return {
            place: sample_factor(place, shapes[place.number], self.batch_size, is_flexible=flexible)
            for place in self.places
            if place is not None
        }

    def _map(
        self,
        parameters: Mapping[str, Tensor],
        inputs: ExampleInputs,
        targets: tuple[int, ...],
        collect: Callable[[Mapping[int, Tensor], int], list[Tensor]],
    ) -> list[Tensor]:
        """Run for all networks, and for all samples in pieces where lengths are fixed."""
        stacked = self._stacked(parameters)
        like = stacked[0]
        samples, num_samples = self._samples_of(inputs, like)
        if self.steps.is_flexible or num_samples == self.batch_size:

            def one(weights: list[Tensor]) -> list[Tensor]:
                values = self.values(weights, samples, num_samples, targets, like)
                return collect(values, num_samples)

            return list(torch.func.vmap(one)(stacked))
        piece = self.batch_size
        count = -(-num_samples // piece)
        order = torch.arange(count * piece, device=like.device) % num_samples
        axes = [0 if row.has_samples else None for row in self.inputs]
        cut = [
            sample if axis is None else sample[order].unflatten(0, (count, piece))
            for sample, axis in zip(samples, axes, strict=True)
        ]

        def some(weights: list[Tensor]) -> list[Tensor]:
            def inner(samples: list[Tensor]) -> list[Tensor]:
                found = collect(self.values(weights, samples, piece, targets, like), piece)
                if any(not value.ndim or value.shape[0] != piece for value in found):
                    raise GraphError(
                        f"{self.name} gives outputs of shapes {[tuple(v.shape) for v in found]} "
                        f"for {piece} samples, not one each: give it exactly {piece} samples, not "
                        f"{num_samples}."
                    )
                return found

            found = torch.func.vmap(inner, in_dims=(axes,))(cut)
            return [value.flatten(0, 1)[:num_samples] for value in found]

        return list(torch.func.vmap(some)(stacked))

    def values(
        self,
        weights: Sequence[Tensor],
        samples: Sequence[Tensor],
        num_samples: int,
        targets: tuple[int, ...],
        like: Tensor,
    ) -> Mapping[int, Tensor]:
        """The target tensors of one network; all others are freed as soon as they were read."""
        dtypes = {self.dtype: like.dtype}
        if self.dtype == torch.float32 and like.dtype == torch.float64:
            dtypes[torch.complex64] = torch.complex128
        values: dict[int, Tensor] = {
            number: weight for (number, _, _), weight in zip(self.parameters, weights, strict=True)
        }
        for row, sample in zip(self.inputs, samples, strict=True):
            values[row.number] = sample
        steps, constants, last = self.plan(targets)
        for number in constants:
            constant = self.steps.constants[number]
            values[number] = constant.to(like.device, dtypes.get(constant.dtype, constant.dtype))
        for step, done in zip(steps, last, strict=True):
            run_step(step, values, num_samples, dtypes, like.device)
            for number in done:
                values.pop(number, None)
        return values

    def plan(self, targets: tuple[int, ...]) -> tuple[list[Step], list[int], list[list[int]]]:
        """The steps to targets, the constants they read, and what is read for the last time."""
        if targets not in self._plans:
            steps = live(self.steps.steps, targets)
            last: list[list[int]] = []
            later = set(targets)
            for step in reversed(steps):
                used = {*refs_of(step.args), *(n for n in step.outputs if n is not None)}
                last.append(sorted(used - later))
                later |= used
            known = sorted(later & self.steps.constants.keys())
            made = {n for step in steps for n in step.outputs} | set(known)
            made |= {n for n, _, _ in self.parameters} | {row.number for row in self.inputs}
            if not later <= made:
                raise GraphError(
                    f"{self.name} cannot be run: it was captured without the values of its "
                    "constants (on the meta device). Capture it with them."
                )
            self._plans[targets] = (steps, known, last[::-1])
        return self._plans[targets]

    def _stacked(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for _, names, shape in self.parameters:
            name = next((name for name in names if name in parameters), None)
            if name is None:
                raise GraphError(
                    f"cannot run {self.name}: parameter {names[0]!r} is missing. Give the stacked "
                    "parameters of graph.write_back(values)."
                )
            tensor = parameters[name]
            if tuple(tensor.shape[1:]) != shape or len(tensor) != len((found or [tensor])[0]):
                raise GraphError(
                    f"cannot run {self.name}: parameter {name!r} has shape {tuple(tensor.shape)}, "
                    f"expected {('B', *shape)}, with one B for all. Stack the networks."
                )
            found.append(tensor)
        return found

    def _samples_of(self, inputs: ExampleInputs, like: Tensor) -> tuple[list[Tensor], int]:
        """The input tensors in order, in the floating type to compute in, and their number."""
        names = [row.name for row in self.inputs]
        if isinstance(inputs, Mapping) and set(names) == inputs.keys():
            inputs = {name: inputs[name] for name in names}
        tensors = output_tensors(inputs)
        counted = [t for t, row in zip(tensors, self.inputs, strict=False) if row.has_samples]
        num_samples = counted[0].shape[0] if counted and counted[0].ndim else self.batch_size
        fits = len(tensors) == len(self.inputs)
        for tensor, row in zip(tensors, self.inputs, strict=False):
            want = at(self.steps.shapes[row.number], num_samples)
            if row.has_samples and want:
                want[0] = num_samples
            fits &= tensor.is_floating_point() == row.dtype.is_floating_point
            fits &= list(tensor.shape) == list(want)
        if not fits:
            got = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors]
            expected = [
                f"{row.dtype} {('M', *shape) if row.has_samples else shape}"
                for row, shape in zip(self.inputs, self.input_shapes, strict=True)
            ]
            raise GraphError(
                f"cannot run {self.name} on inputs {', '.join(got)}: expected "
                f"{', '.join(expected)}, with one M for all."
            )
        return [t.to(like.dtype) if t.is_floating_point() else t for t in tensors], num_samples
