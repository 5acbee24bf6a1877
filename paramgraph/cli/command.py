"""What a command is, and how its flags are made; jsonargparse is imported here only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from paramgraph.errors import ParamGraphError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["Answer", "Command", "UsageError", "add_fields", "make_parser", "parse"]


class UsageError(ParamGraphError):
    """Flags that cannot be used together, or that name something that does not exist."""


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        text: For people.
        data: For programs (``--json``).
        code: Exit code.
    """

    text: str
    data: dict[str, Any]
    code: int = 0


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        words: As typed: ``("zoo", "info")``.
        summary: What it does, in one line.
        example: A line to copy.
        add_arguments: Adds its flags to a parser.
        run: Does it.
    """

    words: tuple[str, ...]
    summary: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], Answer]


_GROUPS = {
    ("zoo",): "Build a zoo of trained networks, or tell what is in one.",
    ("zoo", "build"): "Build a zoo; a killed build continues with the same command.",
}


def make_parser(commands: Sequence[Command]) -> ArgumentParser:
    """The parser of all commands, with one level of subcommands per word."""
    from jsonargparse import ArgumentParser

    import paramgraph

    parser = ArgumentParser(
        prog="paramgraph",
        description="Any PyTorch network in, a graph of its parameters out, and networks that "
        "learn on such graphs.",
        epilog="Start with: paramgraph demo. Each command explains itself: paramgraph COMMAND "
        "--help.",
        version=paramgraph.__version__,
    )
    first = parser.add_subcommands(required=True, dest="word_0", metavar="COMMAND")
    levels: dict[tuple[str, ...], Any] = {(): first}
    for command in commands:
        for depth in range(1, len(command.words)):
            group = command.words[:depth]
            if group not in levels:
                inner = ArgumentParser(description=_GROUPS[group])
                levels[group[:-1]].add_subcommand(group[-1], inner, help=_GROUPS[group])
                levels[group] = inner.add_subcommands(
                    required=True, dest=f"word_{depth}", metavar="COMMAND"
                )
        own = ArgumentParser(
            description=command.summary, epilog=f"Example: {command.example}", exit_on_error=True
        )
        command.add_arguments(own)
        own.add_argument("--json", action="store_true", help="Print one JSON object instead.")
        levels[command.words[:-1]].add_subcommand(command.words[-1], own, help=command.summary)
    return parser


def parse(
    parser: ArgumentParser, commands: Sequence[Command], argv: Sequence[str] | None
) -> tuple[Command, Namespace]:
    """The command that was typed, and its flags."""
    level = parser.parse_args(argv)
    words: list[str] = []
    while f"word_{len(words)}" in level:
        word = level[f"word_{len(words)}"]
        words.append(word)
        level = level[word]
    return next(command for command in commands if command.words == tuple(words)), level


def add_fields(parser: ArgumentParser, settings: type) -> None:
    """A flag for each field of a dataclass (``--batch-size``), explained by its docstring."""
    from docstring_parser import parse as parse_docstring

    texts = {p.arg_name: p.description for p in parse_docstring(settings.__doc__ or "").params}
    hints = get_type_hints(settings)
    for field in fields(settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=hints[field.name],
            default=default,
            help=texts.get(field.name),
        )
