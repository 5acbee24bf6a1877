"""Metanetworks: ``GraphBatch`` in, predictions about networks out.

Takes batches of one or many architectures. Promises: equivariance to the symmetries that each class
names, and predictions that never depend on batch mates (nothing is normalised across networks).
"""

from paramgraph.nn.baselines import FlatMLP, StatNN, layer_statistics
from paramgraph.nn.configs import (
    CONFIGS,
    load_metanetwork,
    make_metanetwork,
    save_metanetwork,
)
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.nn.ng_gnn import NeuralGraphGNN
from paramgraph.nn.operator import OperatorMetanetwork
from paramgraph.nn.standardize import Standardizer

__all__ = [
    "CONFIGS",
    "FlatMLP",
    "Metanetwork",
    "NeuralGraphGNN",
    "OperatorMetanetwork",
    "Standardizer",
    "StatNN",
    "layer_statistics",
    "load_metanetwork",
    "make_metanetwork",
    "save_metanetwork",
]
