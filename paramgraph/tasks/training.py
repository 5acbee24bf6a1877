"""One training entry for all tasks, on Lightning; exact resume, best checkpoint, plots."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramgraph.errors import ZooError
from paramgraph.graph import ParamGraph
from paramgraph.nn import Metanetwork, make_metanetwork
from paramgraph.tasks.budget import BudgetOrder
from paramgraph.tasks.config import CHECKPOINTS, RunResult, TrainConfig
from paramgraph.tasks.data import MAX_EDGES, LoadedNetworks, as_tensor, capture_zoo, load_networks
from paramgraph.tasks.layer_checkpoints import checkpoint_layers
from paramgraph.tasks.loading import Batches, BatchMaker
from paramgraph.tasks.orders import EpochOrder, Order
from paramgraph.tasks.precision import check_bfloat16, keep_float32
from paramgraph.tasks.processes import Ranks, launch, sum_over_ranks
from paramgraph.tasks.run_folder import begin_folder, check_folder, write_json
from paramgraph.tasks.task import Task, make_task
from paramgraph.zoo import Zoo

__all__ = ["predict_all", "train"]


def train(
    zoo: Zoo,
    task: str,
    config: TrainConfig,
    *,
    out: str | os.PathLike[str],
    graphs: dict[str, ParamGraph] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Train a metanetwork on a zoo and write a run folder.

    With ``config.num_processes`` above 1 this starts the processes and waits for them; a script
    that calls it needs ``if __name__ == "__main__":``. Under torchrun each process calls it, and
    those that torchrun started share the steps.

    Args:
        zoo: With splits ``train``, ``val`` and ``test``.
        task: ``inr-classification`` or ``accuracy-prediction``.
        config: Settings.
        out: Run folder; it must not hold a run unless ``resume``.
        graphs: Graphs of the architectures, if they are known already.
        resume: Go on with the last epoch in ``out``.
        progress: Show a progress bar.

    Returns:
        Metrics of the checkpoint with the best validation score, on every split.

    Raises:
        ZooError: The zoo does not fit the task, or has an empty split.
        CheckpointError: ``out`` holds another run, or there is nothing to resume.
        TrainingError: The metanetwork loses too much in bfloat16, has no layers to checkpoint, or
            a process of the run died.
    """
    folder = Path(out)
    check_folder(folder, config, task, resume)
    ranks = Ranks.here()
    if config.num_processes > 1 and ranks.num_ranks == 1:
        make_task(task, zoo)  # what can be refused is refused here, without a traceback
        launch(config.num_processes, _train_rank, zoo, task, config, folder, resume, progress)
        return _read_result(folder)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    made_task = make_task(task, zoo)
    graphs = capture_zoo(zoo) if graphs is None else graphs
    device = _own_device(config)
    dtype = torch.float64 if config.precision == "64" else torch.float32
    splits = {}
    for name in ("train", "val", "test"):
        part = zoo.split(name)
        splits[name] = load_networks(part, made_task.label, graphs, device=device, dtype=dtype)
        if not len(splits[name]):
            raise ZooError(f"split {name!r} of the zoo is empty, so there is nothing to train on.")
    order = _make_order(config, splits["train"], ranks)
    metanetwork = _make_metanetwork(config, made_task, splits["train"], order, device, dtype)
    if ranks.writes:
        begin_folder(folder, config, task)
    seconds = _fit(metanetwork, made_task, splits, config, order, folder, resume, progress)
    metrics, outputs = {}, {}
    for name, networks in splits.items():
        outputs[name] = predict_all(metanetwork, networks, max_edges=config.max_edges or MAX_EDGES)
        metrics[name] = made_task.metrics(outputs[name], networks.target)
    if ranks.writes:
        facts = {"task": task, "zoo": str(zoo.info.get("recipe", "")), "metrics": metrics}
        test = splits["test"].target
        _write_results(
            folder, made_task, config, metanetwork, facts, seconds, outputs["test"], test
        )
    sum_over_ranks(torch.zeros(1, device=device))  # nobody leaves before the files are there
    num_parameters = sum(p.numel() for p in metanetwork.parameters())
    return RunResult(folder, metrics, seconds, num_parameters)


def _train_rank(
    zoo: Zoo, task: str, config: TrainConfig, folder: Path, resume: bool, progress: bool
) -> None:
    """One process of several."""
    progress = progress and Ranks.here().writes
    train(zoo, task, config, out=folder, resume=resume, progress=progress)
    torch.distributed.destroy_process_group()


def _own_device(config: TrainConfig) -> str:
    if config.device == "cuda" and Ranks.here().num_ranks > 1:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return config.device


def _make_metanetwork(
    config: TrainConfig,
    task: Task,
    networks: LoadedNetworks,
    order: Order,
    device: str,
    dtype: torch.dtype,
) -> Metanetwork:
    """Built from the seed, with statistics of the training split; ready for its precision."""
    torch.manual_seed(config.seed)
    metanetwork = make_metanetwork(config.metanetwork, task.out_dim, **config.options)
    sample = _sample(config, networks, order)
    batches = [networks.batch(as_tensor(numbers))[0] for numbers in sample]
    metanetwork.to(device, dtype).fit_statistics(batches)
    if config.precision == "bf16":
        keep_float32(metanetwork)
        some = networks.batch(as_tensor(sample[0][:32]))[0]
        check_bfloat16(metanetwork, some, name=config.metanetwork)
    if config.checkpoint_layers:
        checkpoint_layers(metanetwork)
    return metanetwork


def _sample(config: TrainConfig, networks: LoadedNetworks, order: Order) -> list[list[int]]:
    """Batches of at most 1,024 training networks, spread over all architectures."""
    if isinstance(order, EpochOrder):
        probe = EpochOrder(networks.architecture, 256, seed=config.seed)
        return [numbers for numbers, _ in zip(probe, range(4), strict=False)]
    found: list[list[int]] = []
    for share in (share for step in order.steps() for share in step if share):
        if found and sum(map(len, found)) + len(share) > 1024:
            break
        found.append(share)
    return found


def _make_order(config: TrainConfig, networks: LoadedNetworks, ranks: Ranks) -> Order:
    shared: dict[str, Any] = {
        "seed": config.seed,
        "rank": ranks.rank,
        "num_ranks": ranks.num_ranks,
    }
    if not (config.max_edges or config.max_neurons):
        return EpochOrder(networks.architecture, config.batch_size, **shared)
    return BudgetOrder(
        networks.architecture,
        networks.graphs,
        max_edges=config.max_edges,
        max_neurons=config.max_neurons,
        **shared,
    )


@torch.no_grad()
def predict_all(
    metanetwork: Metanetwork,
    networks: LoadedNetworks,
    *,
    batch_size: int = 256,
    max_edges: int = MAX_EDGES,
) -> Tensor:
    """Raw outputs for all networks, in the order of the zoo ``[num_networks, out_dim]``.

    Where several processes train together, each predicts its share and all get the whole.

    Args:
        metanetwork: It is put into evaluation mode.
        networks: To be read.
        batch_size: Most networks at a time.
        max_edges: Most edges at a time.
    """
    metanetwork.eval()
    ranks = Ranks.here()
    like = networks.values[0].neurons[0]
    outputs = like.new_zeros(len(networks), metanetwork.out_dim)
    batches = networks.batches(batch_size, max_edges=max_edges)
    for index, (batch, numbers) in enumerate(batches):
        if index % ranks.num_ranks == ranks.rank:
            outputs[numbers] = metanetwork(batch)
    return sum_over_ranks(outputs)


def _write_results(
    folder: Path,
    task: Task,
    config: TrainConfig,
    metanetwork: Metanetwork,
    facts: dict[str, Any],
    seconds: dict[str, float],
    output: Tensor,
    target: Tensor,
) -> None:
    """Best checkpoint, metrics, predictions of the test split, pictures."""
    metanetwork.cpu().save_file(folder / "best.safetensors", facts)
    report = {
        "task": task.name,
        "metanetwork": config.metanetwork,
        "num_parameters": sum(p.numel() for p in metanetwork.parameters()),
        "seconds": seconds,
        **facts["metrics"],
    }
    predictions = {
        "split": "test",
        "prediction": task.predict(output).tolist(),
        "target": target.tolist(),
    }
    write_json(folder / "predictions.json", predictions)
    from paramgraph.tasks.plots import plot_learning_curve, plot_predictions

    plot_learning_curve(folder, task.score)
    plot_predictions(folder, task.name)
    write_json(folder / "metrics.json", report)


def _read_result(folder: Path) -> RunResult:
    """What the first process of a run wrote."""
    report = json.loads((folder / "metrics.json").read_text())
    metrics = {name: report[name] for name in ("train", "val", "test")}
    return RunResult(folder, metrics, report["seconds"], report["num_parameters"])


def _fit(
    metanetwork: Metanetwork,
    task: Task,
    splits: dict[str, LoadedNetworks],
    config: TrainConfig,
    order: Order,
    folder: Path,
    resume: bool,
    progress: bool,
) -> dict[str, float]:
    """Run Lightning; afterwards the metanetwork holds the best checkpoint. Returns the seconds."""
    from paramgraph.tasks.lightning import make_module, make_trainer

    maker = BatchMaker(
        splits["train"], config.seed, order.rank, config.weight_noise, config.sign_flips
    )
    module = make_module(metanetwork, task, splits, config, order, folder)
    trainer, best, seconds = make_trainer(task, config, folder, progress=progress)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # when resuming
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # the values are equal everywhere
        trainer.fit(
            module,
            train_dataloaders=Batches(maker, order, num_workers=config.num_workers),
            ckpt_path=str(folder / CHECKPOINTS / "last.ckpt") if resume else None,
            weights_only=True if resume else None,
        )
    took = seconds()
    device = next(iter(splits.values())).target.device
    stored = torch.load(best(), map_location=device, weights_only=True)
    prefix = "metanetwork."
    metanetwork.load_state_dict(
        {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
    )
    metanetwork.to(device)
    return took
