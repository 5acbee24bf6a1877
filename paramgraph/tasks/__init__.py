"""Tasks: what people want to know about networks, and the one way to train for it.

Takes a ``Zoo`` and the name of a metanetwork; gives a run folder (config, metrics, best checkpoint,
plots). Promises: the same seed gives the same batches, and a resumed run is the same run.
"""

from paramgraph.tasks.budget import BudgetOrder
from paramgraph.tasks.config import RunResult, TrainConfig, TrainingError
from paramgraph.tasks.data import LoadedNetworks, capture_zoo, load_networks
from paramgraph.tasks.evaluation import evaluate
from paramgraph.tasks.layer_checkpoints import checkpoint_layers
from paramgraph.tasks.loading import Batches, BatchMaker
from paramgraph.tasks.orders import EpochOrder
from paramgraph.tasks.precision import check_bfloat16, keep_float32
from paramgraph.tasks.task import AccuracyPrediction, InrClassification, Task, make_task
from paramgraph.tasks.training import predict_all, train

__all__ = [
    "AccuracyPrediction",
    "BatchMaker",
    "Batches",
    "BudgetOrder",
    "EpochOrder",
    "InrClassification",
    "LoadedNetworks",
    "RunResult",
    "Task",
    "TrainConfig",
    "TrainingError",
    "capture_zoo",
    "check_bfloat16",
    "checkpoint_layers",
    "evaluate",
    "keep_float32",
    "load_networks",
    "make_task",
    "predict_all",
    "train",
]
