"""``paramgraph eval``: score a finished run on a zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramgraph.cli.command import Answer, Command
from paramgraph.tasks import evaluate
from paramgraph.zoo import Zoo

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EVAL"]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="Run folder that `paramgraph train` wrote.")
    parser.add_argument("--zoo", type=str, required=True, help="Folder of the zoo.")
    parser.add_argument(
        "--split",
        default="test",
        choices=("train", "val", "test", "all"),
        help="Which networks of the zoo.",
    )


def _run(arguments: Namespace) -> Answer:
    metrics = evaluate(arguments.run, Zoo.open(arguments.zoo), split=arguments.split)
    text = "\n".join(f"{name.replace('_', ' ')}: {value:.4f}" for name, value in metrics.items())
    return Answer(text, {"run": arguments.run, "split": arguments.split, "metrics": metrics})


EVAL = Command(
    ("eval",),
    "Score the best checkpoint of a run on a split of a zoo.",
    "paramgraph eval runs/first --zoo demo/zoos/cnn --split test",
    _add_arguments,
    _run,
)
