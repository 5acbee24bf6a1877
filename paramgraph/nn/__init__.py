"""Metanetworks: ``GraphBatch`` in, predictions about networks out.

Takes batches of one or many architectures. Promises: equivariance to the symmetries that each class
names, and predictions that never depend on batch mates (nothing is normalised across networks).
"""

from paramgraph.nn.baselines import FlatMLP, StatNN, layer_statistics
from paramgraph.nn.chains import ChainMetanetwork, chain_options
from paramgraph.nn.configs import CONFIGS, Config, from_config, make_metanetwork
from paramgraph.nn.deepsets import DeepSets
from paramgraph.nn.dmc import DeepMetaClassifier
from paramgraph.nn.dws import DWSNet
from paramgraph.nn.editing import EditedNetworks, NetworkEditor
from paramgraph.nn.gmn import GraphMetanetwork
from paramgraph.nn.gmn_transformer import GraphMetanetworkTransformer
from paramgraph.nn.heads import BoundedHead, EntryHead
from paramgraph.nn.metanetwork import Metanetwork
from paramgraph.nn.nfn import NFN
from paramgraph.nn.nft import NFT
from paramgraph.nn.ng_gnn import NeuralGraphGNN
from paramgraph.nn.ng_transformer import NeuralGraphTransformer
from paramgraph.nn.operator import OperatorMetanetwork
from paramgraph.nn.probes import ProbeEncoder, ProbePoints
from paramgraph.nn.probing import ProbingMetanetwork
from paramgraph.nn.readouts import GraphReadout
from paramgraph.nn.scale_gmn import ScaleGMN
from paramgraph.nn.standardize import Standardizer
from paramgraph.nn.streaming import embed_streamed, fit_statistics_streamed

__all__ = [
    "CONFIGS",
    "NFN",
    "NFT",
    "BoundedHead",
    "ChainMetanetwork",
    "Config",
    "DWSNet",
    "DeepMetaClassifier",
    "DeepSets",
    "EditedNetworks",
    "EntryHead",
    "FlatMLP",
    "GraphMetanetwork",
    "GraphMetanetworkTransformer",
    "GraphReadout",
    "Metanetwork",
    "NetworkEditor",
    "NeuralGraphGNN",
    "NeuralGraphTransformer",
    "OperatorMetanetwork",
    "ProbeEncoder",
    "ProbePoints",
    "ProbingMetanetwork",
    "ScaleGMN",
    "Standardizer",
    "StatNN",
    "chain_options",
    "embed_streamed",
    "fit_statistics_streamed",
    "from_config",
    "layer_statistics",
    "make_metanetwork",
]
