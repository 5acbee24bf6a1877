"""How much faster INRs are fitted together than one at a time, on the same cores in the same run.

The rival is the plain loop that most papers use: an ``nn.Module``, ``torch.optim.Adam``, the mean
squared error, all pixels of one image per step. Ours is ``paramgraph.zoo``'s fitter with the same
architecture, images, number of steps and optimiser. The cost of compiling is reported apart: it is
paid once per build. Both sides are measured in turns, on
one core and on all.

    python benchmarks/fit_inrs.py [--images FILE.npz] [--out benchmarks/results/fit_inrs.jsonl]
"""

import argparse
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgraph.zoo.architectures import Siren
from paramgraph.zoo.images import load_images
from paramgraph.zoo.inrs import image_points
from paramgraph.zoo.siren_fitting import SirenFitter

LR = 1e-3


def main() -> None:
    """Measure, print, and append one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help=".npz file of images; synthetic 28 x 28 images if absent")
    parser.add_argument("--num", type=int, default=512, help="INRs fitted together")
    parser.add_argument("--num-plain", type=int, default=3, help="INRs fitted one at a time")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3, help="each side this often, in turns")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/fit_inrs.jsonl"
    )
    args = parser.parse_args()
    images = _synthetic(args.num) if args.images is None else _from_file(args.images, args.num)
    spec = Siren(widths=(32, 32), out_dim=images.shape[1], omega=30.0)
    points = image_points(*images.shape[2:])
    targets = images.flatten(2).transpose(1, 2)

    start = time.perf_counter()
    fitter = SirenFitter.create(
        spec, points, num=args.num, stack_size=args.num, steps=args.steps, lr=LR, compile=True
    )
    compile_s = time.perf_counter() - start
    print(f"compiling once: {compile_s:.1f} s (a few seconds if the compiler's cache is warm)")
    all_threads = torch.get_num_threads()
    counts = sorted({1, all_threads})
    plain: dict[int, list[float]] = {count: [] for count in counts}
    together: dict[int, list[float]] = {count: [] for count in counts}
    psnr: dict[str, float] = {}
    cpu: dict[str, float] = {"plain": math.inf, "together": math.inf}
    for _ in range(args.rounds):
        for count in counts:
            torch.set_num_threads(count)
            start_cpu = time.process_time()
            seconds, psnr["plain"] = _time_plain(
                spec, points, targets[: args.num_plain], args.steps
            )
            plain[count].append(seconds)
            middle_cpu = time.process_time()
            seconds, psnr["together"] = _time_together(fitter, targets)
            together[count].append(seconds)
            if count == 1:
                cpu_each = (middle_cpu - start_cpu) / min(args.num_plain, len(targets))
                cpu["plain"] = min(cpu["plain"], cpu_each)
                cpu_each = (time.process_time() - middle_cpu) / len(targets)
                cpu["together"] = min(cpu["together"], cpu_each)
    torch.set_num_threads(all_threads)
    result: dict[str, object] = {
        "benchmark": "fit_inrs",
        "images": Path(args.images).stem if args.images else "synthetic",
        "architecture": spec.name,
        "num_points": len(points),
        "steps": args.steps,
        "micro_batch": fitter.micro_batch,
        "compile_s": compile_s,
        "one_core_cpu_ratio": cpu["plain"] / cpu["together"],
        "psnr_db": psnr,
        "load_average": os.getloadavg()[0],
        "machine": _machine(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    # The quietest round of each: other work on the machine only ever adds time. On several
    # threads the rival may use as many as suits it best, since it often does better with one.
    for count in counts:
        plain_s = min(min(plain[c]) for c in counts if c <= count)
        ratio = plain_s / min(together[count])
        result[f"threads_{count}"] = {
            "plain_us_per_step": 1e6 * plain_s / args.steps,
            "together_us_per_step": 1e6 * min(together[count]) / args.steps,
            "ratio": ratio,
        }
        print(
            f"{count} core(s): one at a time {1e3 * plain_s:.1f} ms per INR, together "
            f"{1e3 * min(together[count]):.2f} ms per INR: {ratio:.1f} times faster"
        )
    print(f"in CPU seconds on one core: {cpu['plain'] / cpu['together']:.1f} times less")
    print(f"PSNR after {args.steps} steps: {psnr['plain']:.1f} and {psnr['together']:.1f} dB")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result, sort_keys=True) + "\n")


def _time_plain(spec: Siren, points: Tensor, targets: Tensor, steps: int) -> tuple[float, float]:
    """Return seconds per INR and mean PSNR of the plain loop."""
    torch.manual_seed(0)
    psnr = 0.0
    start = time.perf_counter()
    for target in targets:
        network = spec.build()
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.5 * LR * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss = F.mse_loss(network(points), target)
            loss.backward()
            optimizer.step()
        psnr -= 10 * math.log10(loss.item()) / len(targets)
    return (time.perf_counter() - start) / len(targets), psnr


def _time_together(fitter: SirenFitter, targets: Tensor) -> tuple[float, float]:
    """Return seconds per INR and mean PSNR of fitting all at once, initial weights included."""
    start = time.perf_counter()
    state = fitter.architecture.sample_parameters(len(targets), torch.Generator().manual_seed(0))
    errors = fitter.fit(state, targets)
    return (time.perf_counter() - start) / len(targets), float((-10 * errors.log10()).mean())


def _synthetic(num: int) -> Tensor:
    """Return smooth random images in [0, 1], shape [num, 1, 28, 28]."""
    noise = torch.rand(num, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(28, 28), mode="bilinear")


def _from_file(path: str, num: int) -> Tensor:
    images = load_images(path).x_train
    return images[torch.arange(num) % len(images)]


def _machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
