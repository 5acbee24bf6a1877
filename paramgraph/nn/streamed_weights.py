"""Weights in files as operators on signals: each product reads its block once, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgraph.batch import Bucket, GraphBatch, collate
from paramgraph.errors import GraphError
from paramgraph.graph import ParamGraph
from paramgraph.nn.magnitudes import Squares, log_magnitudes_of, squares_of
from paramgraph.nn.pushes import fan
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.streamed_files import TensorFiles, Tile
from paramgraph.structure import EdgeBlock
from paramgraph.values import NUM_NEURON_CHANNELS, Values

__all__ = ["StreamedWeights", "shapes_of"]


def shapes_of(graph: ParamGraph, files: TensorFiles, dtype: torch.dtype) -> GraphBatch:
    """One network as a batch: its biases and statistics are read, of its weights only the shapes.

    Raises:
        GraphError: A bias or statistic is not finite.
    """
    neurons = []
    for group in graph.neuron_groups:
        values = torch.zeros(1, group.size, NUM_NEURON_CHANNELS, dtype=dtype)
        for feature in group.features:
            column = files.entries(feature.view).read(dtype).reshape(-1)
            if not bool(column.isfinite().all()):
                raise _not_finite(files.place(feature.view))
            values[0, :, feature.role.channel] = column
        neurons.append(values)
    blocks = tuple(
        torch.empty(1, *block.shape, device="meta", dtype=dtype) for block in graph.blocks
    )
    return collate([(graph, Values(blocks, tuple(neurons)))])


@dataclass(frozen=True)
class _Rows:
    """A block and its rows in the bucket."""

    block: EdgeBlock
    senders: slice
    receivers: slice


class StreamedWeights:
    """See ``Weights``; no derivatives.

    Args:
        batch: One network, see ``shapes_of``.
        files: Its weights.
        standardizer: Brings them to unit scale.
        tile: Entries that are read, converted and multiplied at a time.

    Raises:
        GraphError: A weight is not finite.
    """

    def __init__(
        self, batch: GraphBatch, files: TensorFiles, standardizer: Standardizer, tile: int
    ) -> None:
        self._batch, self._files, self._tile = batch, files, tile
        self._scales = standardizer.factors(batch.buckets)
        self.squares = [self._squares_of(bucket) for bucket in batch.buckets]

    def push(
        self, number: int, signal: Tensor, psi: Tensor | None, *, backward: bool = False
    ) -> Tensor:
        """See ``Weights``."""
        bucket = self._batch.buckets[number]
        scale = self._scales[number] / math.sqrt(fan(bucket, backward=backward))
        return self._pushed(bucket, signal, psi, backward=backward).mul_(scale)

    def push_squares(self, number: int, signal: Tensor, *, backward: bool = False) -> Tensor:
        """See ``Weights``."""
        bucket = self._batch.buckets[number]
        scale = self._scales[number] ** 2 / bucket.values.shape[2 if backward else 3]
        found = self._pushed(bucket, signal, None, backward=backward, is_squared=True)
        return found.mul_(scale)

    def magnitudes(self) -> Tensor:
        """See ``Weights``."""
        found = [
            square.scaled(scale**2)
            for square, scale in zip(self.squares, self._scales, strict=True)
        ]
        return log_magnitudes_of(self._batch, found)

    def _pushed(
        self,
        bucket: Bucket,
        signal: Tensor,
        psi: Tensor | None,
        *,
        backward: bool,
        is_squared: bool = False,
    ) -> Tensor:
        dim = signal.shape[1]
        num_rows = (bucket.senders if backward else bucket.receivers).length
        result = signal.new_zeros(num_rows, dim)
        for here in self._blocks(bucket):
            block = here.block
            rows = (here.receivers, here.senders) if backward else (here.senders, here.receivers)
            given = signal[rows[0]].reshape(block.num_blocks, -1, dim)
            out = result[rows[1]].view(block.num_blocks, -1, dim)
            for tile in self._tiles(block, signal.dtype):
                weights = tile.values
                if is_squared:
                    weights = weights.square().mean(-1, keepdim=True)
                source, target = tile.senders, tile.receivers
                if backward:
                    source, target = target, source
                _add_product(
                    out[tile.blocks, target],
                    weights,
                    psi,
                    given[tile.blocks, source],
                    backward=backward,
                )
        return result

    def _blocks(self, bucket: Bucket) -> Iterator[_Rows]:
        """The blocks of a bucket; their rows follow each other."""
        graph = self._batch.parts[0].graph
        sender = receiver = 0
        for slot in bucket.slots:
            block = graph.blocks[slot.block]
            next_sender = sender + block.num_blocks * block.num_senders
            next_receiver = receiver + block.num_blocks * block.num_receivers
            yield _Rows(block, slice(sender, next_sender), slice(receiver, next_receiver))
            sender, receiver = next_sender, next_receiver

    def _tiles(self, block: EdgeBlock, dtype: torch.dtype) -> Iterator[Tile]:
        if block.view is not None:
            yield from self._files.entries(block.view).tiles(dtype, self._tile)
            return
        # A constant: one number, in the shape of a block.
        blocks, receivers, senders, positions = block.shape
        values = torch.full((), block.constant, dtype=dtype)
        step = max(1, self._tile // max(1, receivers * senders * positions))
        whole = slice(0, receivers), slice(0, senders)
        for start in range(0, blocks, step):
            some = slice(start, min(start + step, blocks))
            shape = (some.stop - start, receivers, senders, positions)
            yield Tile(some, *whole, values.expand(shape))

    def _squares_of(self, bucket: Bucket) -> Squares:
        """Sums and maxima of squares, which are finite only if all weights are."""
        dtype = self._batch.dtype
        found: list[list[Tensor]] = []
        for here in self._blocks(bucket):
            block = here.block
            blocks, receivers, senders, positions = block.shape
            if block.view is None:
                square = block.constant**2
                each = (
                    (square * senders * positions, blocks * receivers),
                    (square, blocks * receivers),
                    (square * receivers * positions, blocks * senders),
                    (square, blocks * senders),
                )
                found.append([torch.full((num,), value, dtype=dtype) for value, num in each])
                continue
            totals = [
                torch.zeros(blocks, n, dtype=dtype) for n in (receivers,) * 2 + (senders,) * 2
            ]
            entries = self._files.entries(block.view)
            for tile in entries.tiles(dtype, min(self._tile, _TILE_OF_SQUARES)):
                part = squares_of(tile.values)
                num = tile.blocks.stop - tile.blocks.start
                rows = (tile.blocks, tile.receivers), (tile.blocks, tile.senders)
                ends = part.to_receivers, part.to_senders
                for place, (total, high), (sums, tops) in zip(
                    rows, ends, (totals[:2], totals[2:]), strict=True
                ):
                    sums[place] += total.view(num, -1)
                    tops[place] = torch.maximum(tops[place], high.view(num, -1))
            if not bool(totals[0].isfinite().all()):
                raise _not_finite(self._files.place(block.view))
            found.append([total.reshape(-1) for total in totals])
        joined = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return Squares((joined[0], joined[1]), (joined[2], joined[3]))


_TILE_OF_SQUARES = 2**17  # passed over several times, so it is to stay in the cache


def _add_product(
    out: Tensor, weights: Tensor, psi: Tensor | None, signal: Tensor, *, backward: bool = False
) -> None:
    """Add ``weights [b, R, S, P]`` times ``signal [b, S, dim]`` to ``out [b, R, dim]``."""
    if weights.shape[1] == weights.shape[2] == 1 and weights.shape[3] == 1:
        out.addcmul_(weights[..., 0], signal)
        return
    operators = [weights[..., 0]] if psi is None else list((weights @ psi).unbind(-1))
    width = signal.shape[2] // len(operators)
    for number, matrix in enumerate(operators):
        columns = slice(number * width, (number + 1) * width)
        matrix = matrix.transpose(1, 2) if backward else matrix
        if len(matrix) == 1:
            out[0, :, columns].addmm_(matrix[0], signal[0, :, columns])
        else:
            out[:, :, columns] += matrix @ signal[:, :, columns]


def _not_finite(what: str) -> GraphError:
    return GraphError(
        f"{what} has entries that are not finite (or whose squares are not): such a network cannot "
        "be read. Look at how it was trained or converted."
    )
