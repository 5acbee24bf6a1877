"""``paramgraph demo``: the whole line once, on digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramgraph.cli.command import Answer, Command
from paramgraph.report import run_demo

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["DEMO"]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str, default="demo", help="Folder of the results.")
    parser.add_argument("--seed", type=int, default=0, help="Everything random follows from it.")
    parser.add_argument(
        "--scale", default="demo", choices=("demo", "tiny"), help="tiny is a quick test."
    )
    parser.add_argument("--workers", type=int, default=2, help="Metanetworks trained at a time.")


def _run(arguments: Namespace) -> Answer:
    result = run_demo(
        arguments.out,
        seed=arguments.seed,
        scale=arguments.scale,
        num_workers=arguments.workers,
    )
    return Answer(result.text, result.metrics)


DEMO = Command(
    ("demo",),
    "Build two zoos of digit networks, train six metanetworks on them, write a page of results.",
    "paramgraph demo --out demo",
    _add_arguments,
    _run,
)
