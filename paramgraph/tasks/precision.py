"""Training in bfloat16 where that is safe, and a check that says where it is not.

Under autocast matrix products run in bfloat16 (8 bits of mantissa), weights and sums of gradients
stay in float32. What multiplies its input by large factors, or writes its gradient by hand for one
dtype, is kept in float32 here; what a metanetwork then still loses is measured before training.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paramgraph.batch import GraphBatch
from paramgraph.nn import Metanetwork
from paramgraph.tasks.config import TrainingError

__all__ = ["FLOAT32_CLASSES", "check_bfloat16", "keep_float32", "low_precision"]

FLOAT32_CLASSES: dict[str, str] = {
    "EdgeEncoder": "random frequencies: an angle of 30 loses all digits of its sine",
    "NeuronEncoder": "random frequencies",
    "NodeEncoder": "first look at the weights: what is lost here is lost for all layers",
    "LinkEncoder": "first look at the weights",
    "ProbeEncoder": "runs the networks themselves, which were trained in float32",
    "ProbePoints": "inputs of the networks",
    "NetworkNorm": "sums of squares over a whole network",
    "GraphReadout": "sums over a whole network",
    "TypedReadout": "sums over a whole network",
}
"""Classes of modules whose ``forward`` stays in float32 under autocast, and why."""

TOLERANCE = 0.05
"""Largest accepted root mean square change of the outputs, as a part of their own."""


def keep_float32(metanetwork: nn.Module) -> int:
    """Run the modules of ``FLOAT32_CLASSES`` in float32 whatever autocast says.

    Their inputs are cast back, so that it does not matter what ran before. Names of parameters and
    results without autocast stay as they are. Calling it twice changes nothing.

    Args:
        metanetwork: Changed in place.

    Returns:
        How many modules.

    Example:
        >>> from paramgraph.nn import make_metanetwork
        >>> keep_float32(make_metanetwork("ng-gnn", 2, hidden_dim=8)) > 1
        True
    """
    num = 0
    for module in metanetwork.modules():
        if type(module).__name__ in FLOAT32_CLASSES:
            module.forward = partial(_in_float32, module)
            num += 1
    return num


def _in_float32(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_autocast_enabled(_device(module)):
        return type(module).forward(module, *args, **kwargs)
    with torch.autocast(_device(module), enabled=False):
        args = tuple(_widened(value) for value in args)
        kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return type(module).forward(module, *args, **kwargs)


def _device(module: nn.Module) -> str:
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return "cpu" if tensor is None else tensor.device.type


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_narrow else value


@contextlib.contextmanager
def low_precision(device: str = "cpu") -> Iterator[None]:
    """Autocast to bfloat16, as training with ``precision="bf16"`` has it.

    Example:
        >>> with low_precision():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
        yield


def check_bfloat16(metanetwork: Metanetwork, batch: GraphBatch, *, name: str = "") -> float:
    """Refuse a metanetwork whose outputs or gradients do not survive bfloat16.

    Measured without dropout on real networks: ``rms(low - full) / rms(full)`` of the outputs.

    Args:
        metanetwork: After ``keep_float32``; its gradients are cleared.
        batch: Some networks of the training split.
        name: How the message calls the metanetwork.

    Returns:
        The change of the outputs.

    Raises:
        TrainingError: An operation has no bfloat16 form, a gradient is not finite, or the outputs
            change by more than ``TOLERANCE``.
    """
    name = name or type(metanetwork).__name__
    was_training = metanetwork.training
    metanetwork.eval()
    try:
        with torch.no_grad():
            full = _outputs(metanetwork, batch)
        try:
            with low_precision(full.device.type):
                low = _outputs(metanetwork, batch)
            low.square().mean().backward()
        except RuntimeError as error:
            raise TrainingError(
                f"{name} cannot run in bfloat16: {str(error).splitlines()[0]} Use --precision 32."
            ) from error
        size = full.square().mean().sqrt().clamp(min=1e-30)
        change = float((low.detach() - full).square().mean().sqrt() / size)
        bad = [n for n, p in metanetwork.named_parameters() if not _is_finite(p.grad)]
        problem = ""
        if not math.isfinite(change):
            problem = "its outputs are not finite"
        elif bad:
            problem = f"its gradient of {bad[0]!r} is not finite"
        elif change > TOLERANCE:
            problem = f"its outputs change by {change:.1%}, more than {TOLERANCE:.0%}"
        if problem:
            raise TrainingError(f"{name} is not safe in bfloat16: {problem}. Use --precision 32.")
    finally:
        metanetwork.zero_grad(set_to_none=True)
        metanetwork.train(was_training)
    return change


def _outputs(metanetwork: Metanetwork, batch: GraphBatch) -> Tensor:
    output = metanetwork(batch)
    return (output if isinstance(output, Tensor) else output.flat()).float()


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())
