"""Which metanetwork learns most from the same networks in the same CPU time.

All subjects classify the same INRs of images (SIRENs [2, 32, 32, 1], omega 30, each from its own
random weights): same zoo, split, seed, schedule and noise, and the same CPU seconds of training on
one thread. How many steps fit is measured first, so that the learning rate has fallen
to zero when the time is over.

    python -m benchmarks.learning_check --images mnist.npz --zoo zoos/mnist
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learning_subjects import SUBJECTS, Subject
from paramgraph.nn import Metanetwork, make_metanetwork
from paramgraph.tasks.augment import add_weight_noise
from paramgraph.tasks.data import (
    EpochOrder,
    LoadedNetworks,
    as_tensor,
    capture_zoo,
    load_networks,
)
from paramgraph.tasks.training import predict_all
from paramgraph.zoo import Zoo, fit_inrs
from paramgraph.zoo.architectures import Siren
from paramgraph.zoo.images import load_images

NOISE = 0.05  # of each weight, relative, for all subjects
NUM_TIMED = 6  # steps that tell how many fit


def main() -> int:
    """Train each subject, print and append one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="digits", help="digits, or an .npz file of images")
    parser.add_argument("--zoo", type=Path, required=True, help="folder; built if there is none")
    parser.add_argument("--num-train", type=int, default=8000)
    parser.add_argument("--cpu-seconds", type=float, default=200.0, help="of training, per subject")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/learning_check.jsonl"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    zoo = _zoo(args.images, args.zoo, args.num_train)
    graphs = capture_zoo(zoo)
    splits = {s: load_networks(zoo.split(s), "label", graphs) for s in ("train", "test")}
    psnr = float(np.mean(zoo.column("psnr")))
    for seed in args.seeds:
        for name in args.subjects:
            row = {
                "subject": name,
                "images": Path(args.images).stem,
                "num_train": len(splits["train"]),
                "num_test": len(splits["test"]),
                "psnr": round(psnr, 2),
                "seed": seed,
                "budget": args.cpu_seconds,
                **run(SUBJECTS[name], splits, args.cpu_seconds, seed),
                **_where(),
            }
            print(json.dumps(row), flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


def run(
    subject: Subject, splits: dict[str, LoadedNetworks], cpu_seconds: float, seed: int
) -> dict[str, object]:
    """Train one subject for some CPU seconds; its accuracy and cost."""
    train = splits["train"]
    torch.manual_seed(seed)
    metanetwork = make_metanetwork(subject.config, 10, **subject.options)
    metanetwork.fit_statistics([train.batch(torch.arange(256))[0]])
    start = {name: value.clone() for name, value in metanetwork.state_dict().items()}
    per_step = _fit(metanetwork, train, subject, NUM_TIMED, seed)[1:]
    metanetwork.load_state_dict(start)
    num_steps = max(1, int(cpu_seconds / float(np.median(per_step))))
    torch.manual_seed(seed)
    begun, wall = time.process_time(), time.perf_counter()
    _fit(metanetwork, train, subject, num_steps, seed)
    spent, wall = time.process_time() - begun, time.perf_counter() - wall
    result: dict[str, object] = {}
    for split, networks in splits.items():
        right = predict_all(metanetwork, networks).argmax(1) == networks.target
        result[f"{split}_accuracy"] = round(float(right.float().mean()), 4)
    return {
        "num_parameters": sum(p.numel() for p in metanetwork.parameters()),
        "num_steps": num_steps,
        "epochs": round(num_steps * subject.batch_size / len(train), 2),
        "cpu_seconds": round(spent, 1),
        "wall_seconds": round(wall, 1),
        "steps_per_cpu_second": round(num_steps / spent, 2),
        "cpu_ms_per_network": round(1e3 * spent / num_steps / subject.batch_size, 3),
        "learning_rate": subject.learning_rate,
        "batch_size": subject.batch_size,
        **result,
    }


def _fit(
    metanetwork: Metanetwork,
    networks: LoadedNetworks,
    subject: Subject,
    num_steps: int,
    seed: int,
) -> list[float]:
    """One-cycle AdamW for ``num_steps``; CPU seconds of each step."""
    optimizer = torch.optim.AdamW(
        metanetwork.parameters(), lr=subject.learning_rate, weight_decay=1e-2
    )
    schedule: Callable[[int], float] = lambda step: _one_cycle(step / num_steps)  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    metanetwork.train()
    seconds = []
    numbers = _forever(networks, subject.batch_size, seed)
    for _ in range(num_steps):
        begun = time.process_time()
        batch, which = networks.batch(next(numbers))
        output = metanetwork(add_weight_noise(batch, NOISE))
        loss = nn.functional.cross_entropy(output, networks.target[which])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(metanetwork.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        seconds.append(time.process_time() - begun)
    return seconds


def _forever(networks: LoadedNetworks, batch_size: int, seed: int) -> Iterator[Tensor]:
    order = EpochOrder(networks.architecture, batch_size, seed=seed)
    epoch = 0
    while True:
        order.set_epoch(epoch)
        yield from map(as_tensor, order)
        epoch += 1


def _one_cycle(done: float) -> float:
    """Factor of the learning rate: a rise over the first tenth, then a cosine to zero."""
    if done < 0.1:
        return 0.04 + 0.96 * done / 0.1
    return 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def _zoo(images: str, folder: Path, num_train: int) -> Zoo:
    if (folder / "zoo.json").is_file():
        return Zoo.open(folder)
    found = load_images(images)
    num_train = min(num_train, len(found.x_train))
    num_test = min(1000, len(found.x_test))
    return fit_inrs(
        torch.cat([found.x_train[:num_train], found.x_test[:num_test]]),
        torch.cat([found.y_train[:num_train], found.y_test[:num_test]]),
        out=folder,
        architecture=Siren(widths=(32, 32), omega=30.0),
        steps=400,
        split=["train"] * num_train + ["test"] * num_test,
        source=images,
    )


def _where() -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    raise SystemExit(main())
