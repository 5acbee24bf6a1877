"""Networks larger than memory: the operator metanetwork on memory-mapped files.

The operator metanetwork reads each weight matrix once per sweep and direction and keeps nothing per
weight. So blocks can be read from files one after another; memory holds the signals of the neurons
and one tile of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from paramgraph.graph import ParamGraph
from paramgraph.nn.operator import OperatorMetanetwork
from paramgraph.nn.standardize import Sums
from paramgraph.nn.streamed_files import TensorFiles
from paramgraph.nn.streamed_weights import StreamedWeights, shapes_of

__all__ = ["embed_streamed", "fit_statistics_streamed"]

Paths = str | Path | Sequence[str | Path]
_TILE = 2**22


@torch.no_grad()
def embed_streamed(
    metanetwork: nn.Module,
    graph: ParamGraph,
    paths: Paths,
    *,
    strict: bool = True,
    tile: int = _TILE,
) -> Tensor:
    """What a metanetwork says of a network in safetensors files, without loading its weights.

    Equal to ``metanetwork(collate([(graph, graph.features(state_dict))]))`` up to rounding; memory
    is that of the neurons' signals and of one tile. Weights in 16 bits are converted tile by tile.
    In evaluation mode, without derivatives.

    Args:
        metanetwork: An ``OperatorMetanetwork`` without probes at level ``"graph"`` or ``"neuron"``,
            on the CPU.
        graph: Structure of the network; ``capture`` finds it from a module on the meta device.
        paths: A safetensors file, or several that hold different parameters.
        strict: Refuse tensors in the files that belong to no parameter of the graph.
        tile: Entries of a block that are read and multiplied at a time.

    Returns:
        ``[1, out_dim]``, or ``[num_neurons, out_dim]`` at level ``"neuron"``.

    Raises:
        GraphError: A file or tensor is missing or does not fit, or a weight is not finite.
        TypeError: Not an ``OperatorMetanetwork``.
        ValueError: It has probes, is at level ``"parameter"``, or not on the CPU.

    Example:
        >>> import tempfile, paramgraph as pg
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> graph = pg.capture(network, torch.randn(5, 3))
        >>> metanetwork = OperatorMetanetwork(7, hidden_dim=8).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     save_file(network.state_dict(), path)
        ...     streamed = embed_streamed(metanetwork, graph, path)
        >>> batch = pg.collate([(graph, graph.features(network.state_dict()))])
        >>> torch.allclose(streamed, metanetwork(batch), atol=1e-5)
        True
    """
    _check(metanetwork)
    assert isinstance(metanetwork, OperatorMetanetwork)
    files = TensorFiles(graph, paths, strict=strict)
    batch = shapes_of(graph, files, metanetwork.input_identity.dtype)
    was_training = metanetwork.training
    metanetwork.eval()
    try:
        weights = StreamedWeights(batch, files, metanetwork.standardizer, tile)
        result = metanetwork.read(batch, weights)
    finally:
        metanetwork.train(was_training)
    assert isinstance(result, Tensor)
    return result


@torch.no_grad()
def fit_statistics_streamed(
    metanetwork: nn.Module,
    networks: Iterable[tuple[ParamGraph, Paths]],
    *,
    strict: bool = True,
    tile: int = _TILE,
) -> None:
    """``metanetwork.fit_statistics`` of networks in safetensors files, in one pass over them.

    Args:
        metanetwork: As for ``embed_streamed``.
        networks: Pairs of a graph and the paths of its files.
        strict: As for ``embed_streamed``.
        tile: As for ``embed_streamed``.

    Raises:
        GraphError: As for ``embed_streamed``.
        TypeError: As for ``embed_streamed``.
        ValueError: As for ``embed_streamed``.
    """
    _check(metanetwork)
    assert isinstance(metanetwork, OperatorMetanetwork)
    sums = Sums()
    for graph, paths in networks:
        files = TensorFiles(graph, paths, strict=strict)
        batch = shapes_of(graph, files, metanetwork.input_identity.dtype)
        weights = StreamedWeights(batch, files, metanetwork.standardizer, tile)
        sums.add_neurons(batch)
        for bucket, squares in zip(batch.buckets, weights.squares, strict=True):
            sums.add_edges(bucket, squares.to_receivers[0].double().sum())
    metanetwork.standardizer.set_from(sums)


def _check(metanetwork: nn.Module) -> None:
    kind = type(metanetwork).__name__
    if not isinstance(metanetwork, OperatorMetanetwork):
        raise TypeError(
            f"streaming is for the operator metanetwork, got {kind}: others keep something for "
            'every weight. Use make_metanetwork("operator", ...), or load and collate the weights.'
        )
    if metanetwork.probes is not None:
        raise ValueError(
            "streaming runs no network, but this metanetwork has num_probes="
            f"{metanetwork.probes.num_probes}. Use one with num_probes=0."
        )
    if metanetwork.level == "parameter":
        raise ValueError(
            'streaming has outputs at level "graph" and "neuron", but this metanetwork is at level '
            '"parameter", whose outputs are as large as the weights.'
        )
    if metanetwork.input_identity.device.type != "cpu":
        raise ValueError(
            f"streaming reads files on the CPU, but this metanetwork is on "
            f"{metanetwork.input_identity.device}. Move it with metanetwork.cpu()."
        )
