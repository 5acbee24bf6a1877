"""One small function per ONNX operator, in files by family; importing this registers them all."""

from paramgraph.frontends.onnx_operators import (
    activations,
    arithmetic,
    attention,
    convolutions,
    indexing,
    normalizations,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sequences,
    shapes,
)
from paramgraph.frontends.onnx_operators.registry import OPERATORS, Call, Operator

__all__ = [
    "OPERATORS",
    "Call",
    "Operator",
    "activations",
    "arithmetic",
    "attention",
    "convolutions",
    "indexing",
    "normalizations",
    "pooling",
    "products",
    "recurrent",
    "reductions",
    "resizing",
    "sequences",
    "shapes",
]
