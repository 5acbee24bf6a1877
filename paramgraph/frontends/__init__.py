"""Front ends: a file in, an ``nn.Module`` and inputs for it out, which ``capture`` then reads.

Takes programs of ``torch.export``, ONNX files, folders of ``transformers``, and weights with the
function that builds their network. Promises that a file is data: nothing in it is unpickled,
imported or evaluated, and what cannot be read this way is refused. Does not look at symmetries.
"""

from __future__ import annotations

from paramgraph.frontends.exported import load_exported
from paramgraph.frontends.factory import build_from_factory
from paramgraph.frontends.loaded import LoadedNetwork
from paramgraph.frontends.onnx_file import load_onnx
from paramgraph.frontends.transformers_folder import load_transformers

__all__ = [
    "LoadedNetwork",
    "build_from_factory",
    "load_exported",
    "load_onnx",
    "load_transformers",
]
