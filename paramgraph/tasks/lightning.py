"""The Lightning side of training; imported only when a run starts (Lightning is slow to import)."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from paramgraph.nn import Metanetwork
from paramgraph.storage import write_atomic
from paramgraph.tasks.config import CHECKPOINTS, TrainConfig
from paramgraph.tasks.data import MAX_EDGES, LoadedNetworks
from paramgraph.tasks.loading import Prepared
from paramgraph.tasks.orders import Order
from paramgraph.tasks.processes import TIMEOUT, Ranks, sum_over_ranks
from paramgraph.tasks.task import Task
from paramgraph.tasks.training import predict_all
from paramgraph.zoo.building import derive_seed

__all__ = ["make_module", "make_trainer"]


class _Module(L.LightningModule):
    """Trains a metanetwork on batches; validates on the whole split after each epoch."""

    def __init__(
        self,
        metanetwork: Metanetwork,
        task: Task,
        splits: dict[str, LoadedNetworks],
        config: TrainConfig,
        order: Order,
        folder: Path,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.metanetwork = metanetwork
        self.task = task
        self.splits = splits
        self.config = config
        self.order = order
        self.num_steps = len(order) * config.epochs
        self._losses: list[Tensor] = []
        self._rows: list[dict[str, float]] = []

    def on_train_epoch_start(self) -> None:
        """Lightning calls ``set_epoch`` of samplers, but not of batch samplers."""
        self.order.set_epoch(self.current_epoch)

    def training_step(self, prepared: Prepared, index: int) -> Tensor:
        """Loss of one mini-batch, weighted so that processes together have the mean of the step."""
        if index == 0:
            # A function of (seed, epoch) alone, as the order is: starting and resuming Lightning,
            # and the loader, draw different amounts of random numbers before this point.
            rank = [self.order.rank] if self.order.rank else []
            torch.manual_seed(derive_seed(self.config.seed, self.current_epoch, *rank))
        target = self.splits["train"].target[prepared.numbers]
        output = self.metanetwork(prepared.batch)
        output = output.float() if self.config.precision == "bf16" else output
        loss = self.task.loss(output, target)
        if self.order.num_ranks > 1:
            loss = loss * self.order.weight(index)
        self._losses.append(loss.detach() / self.order.num_ranks * self.order.count(index))
        return loss

    def on_train_epoch_end(self) -> None:
        """Metrics of the whole validation split, computed once, and the mean training loss."""
        networks = self.splits["val"]
        output = predict_all(
            self.metanetwork, networks, max_edges=self.config.max_edges or MAX_EDGES
        )
        metrics = self.task.metrics(output, networks.target)
        self.metanetwork.train()
        total = sum_over_ranks(torch.stack(self._losses).double().sum())
        values = {"train/loss": float(total) / len(self.splits["train"])}
        values |= {f"val/{name}": value for name, value in metrics.items()}
        self._losses.clear()
        for name, value in values.items():
            self.log(name, value, prog_bar=name == f"val/{self.task.score}")
        self._rows.append({"epoch": self.current_epoch, **values})
        if self.order.rank == 0:
            self._write_rows()

    def _write_rows(self) -> None:
        """metrics.csv as a whole (Lightning's own logger deletes what an interrupted run wrote)."""
        file = io.StringIO()
        writer = csv.DictWriter(file, list(self._rows[0]))
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.folder / "metrics.csv", file.getvalue().encode())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rows, so that a resumed run has them all."""
        checkpoint["metrics_rows"] = self._rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the rows of the interrupted run."""
        self._rows = list(checkpoint["metrics_rows"])

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(
            self.metanetwork.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.config.learning_rate,
            total_steps=self.num_steps,
            pct_start=self.config.warmup,
            cycle_momentum=False,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Clock(callbacks.Callback):
    """Wall time, and CPU time of all processes, kept in the checkpoint: a resumed run adds up."""

    def __init__(self) -> None:
        self._begin({"wall": 0.0, "cpu": 0.0})

    def _begin(self, before: dict[str, float]) -> None:
        self._before = before
        self._start = {"wall": time.perf_counter(), "cpu": time.process_time()}

    def state_dict(self) -> dict[str, float]:
        """Time until now."""
        wall = time.perf_counter() - self._start["wall"]
        return {"wall": self._before["wall"] + wall, "cpu": self._before["cpu"] + self._cpu()}

    def _cpu(self) -> float:
        """Of all processes; each of them asks at the same points."""
        return float(sum_over_ranks(torch.tensor(time.process_time() - self._start["cpu"])))

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on with the time of the interrupted run."""
        self._begin(dict(state_dict))


def make_module(
    metanetwork: Metanetwork,
    task: Task,
    splits: dict[str, LoadedNetworks],
    config: TrainConfig,
    order: Order,
    folder: Path,
) -> L.LightningModule:
    """The module that Lightning trains; it writes metrics.csv into ``folder``."""
    return _Module(metanetwork, task, splits, config, order, folder)


def make_trainer(
    task: Task, config: TrainConfig, folder: Path, *, progress: bool
) -> tuple[L.Trainer, Callable[[], str], Callable[[], dict[str, float]]]:
    """The trainer, and functions that give the path of its best checkpoint and its time."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    score = f"val/{task.score}"
    best = callbacks.ModelCheckpoint(
        folder / CHECKPOINTS,
        filename="best",
        monitor=score,
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    # Of its own, because `save_last=True` keeps the last one that was an improvement.
    last = callbacks.ModelCheckpoint(
        folder / CHECKPOINTS,
        filename="last",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    clock = _Clock()
    hooks: list[callbacks.Callback] = [clock, best, last]
    if config.patience:
        hooks.append(
            callbacks.EarlyStopping(
                score, mode="max", patience=config.patience, check_on_train_epoch_end=True
            )
        )
    if progress:
        hooks.append(callbacks.TQDMProgressBar(refresh_rate=10, leave=False))
    ranks = Ranks.here()
    several: dict[str, Any] = {}
    if ranks.num_ranks > 1:
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        several = {
            # Architectures differ between the shares of a step, and so do the parameters they use.
            "strategy": DDPStrategy(find_unused_parameters=True, timeout=TIMEOUT),
            # Named, because Lightning would look for a cluster around us.
            "plugins": [TorchElasticEnvironment() if by_torchrun else LightningEnvironment()],
            "devices": ranks.num_local,
            "num_nodes": ranks.num_ranks // ranks.num_local,
        }
    trainer = L.Trainer(
        accelerator="gpu" if config.device.startswith("cuda") else "cpu",
        **{"devices": 1, **several},
        # Weights and batches have the precision already; autocast is all that is left to do.
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=config.epochs,
        gradient_clip_val=config.clip or None,
        callbacks=hooks,
        logger=(ranks.writes and _tensorboard(folder)) or False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    return trainer, lambda: best.best_model_path or last.best_model_path, clock.state_dict


def _tensorboard(folder: Path) -> list[Logger]:
    """Event files where TensorBoard is installed."""
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    except ModuleNotFoundError:
        logging.getLogger(__name__).info("tensorboard is not installed; only metrics.csv is kept")
        return []
