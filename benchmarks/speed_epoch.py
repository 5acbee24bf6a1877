"""Throughput of training on a zoo: features once, then collate and optimizer steps, all cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import paramgraph as pg
from benchmarks.measuring import interleaved
from benchmarks.speed_networks import make_networks
from benchmarks.speed_rows import OUT_DIM, ROWS
from benchmarks.speed_stages import num_cores
from paramgraph.nn import make_metanetwork

__all__ = ["EPOCH_ROWS", "epoch_lines"]

#: Row to networks per step.
EPOCH_ROWS = {"NG-GNN d=32": 64, "operator, 1 round": 64, "operator, 2 rounds": 64}
NUM_IN_EPOCH = 60_000


def epoch_lines(
    num: int, *, repeats: int = 3, progress: Callable[[str], object] = lambda text: None
) -> list[dict[str, Any]]:
    """Networks per second of features, collate and training steps on ``num`` INRs [2, 32, 32, 1].

    The time of an epoch of 60,000 follows from that; features are read once per epoch, which is
    more often than training does.

    Args:
        num: INRs in the part of an epoch that is run.
        repeats: Of each row, in turns; medians.
        progress: Called after each row.
    """
    networks = make_networks("inr", num)
    (graph,) = networks.capture()
    labels = torch.randint(OUT_DIM, (num,))
    fit = pg.collate([(graph, networks.features([graph])[0][: min(num, 512)])])
    tasks: dict[str, Callable[[], object]] = {}
    for row, batch_size in EPOCH_ROWS.items():
        torch.manual_seed(0)
        metanetwork = make_metanetwork(ROWS[row].config, OUT_DIM, **ROWS[row].options)
        metanetwork.fit_statistics([fit])
        optimizer = torch.optim.AdamW(metanetwork.parameters(), lr=1e-3)

        def run(
            metanetwork: torch.nn.Module = metanetwork,
            optimizer: torch.optim.Optimizer = optimizer,
            batch_size: int = batch_size,
        ) -> None:
            values = networks.features([graph])[0]
            metanetwork.train()
            for rows in torch.randperm(num).split(batch_size):
                predicted = metanetwork(pg.collate([(graph, values[rows])]))
                loss = torch.nn.functional.cross_entropy(predicted, labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        tasks[row] = run
    lines = []
    started = time.perf_counter()
    for threads in sorted({1, num_cores()}):
        found = interleaved(
            tasks, num_threads=threads, seconds=0.0, least_repeats=repeats, most_repeats=repeats
        )
        progress(f"epoch, {threads} threads, {time.perf_counter() - started:.0f} s")
        for row, timing in found.items():
            lines.append(
                {
                    "row": row,
                    "num": num,
                    "batch_size": EPOCH_ROWS[row],
                    "num_threads": threads,
                    "cpu_s": timing.cpu_ms / 1e3,
                    "wall_s": timing.wall_ms / 1e3,
                    "per_second": 1e3 * num / timing.wall_ms,
                    "per_cpu_second": 1e3 * num / timing.cpu_ms,
                    "epoch_s": NUM_IN_EPOCH * timing.wall_ms / 1e3 / num,
                }
            )
    return lines
