"""Command line: one small file per command; ``paramgraph`` and ``python -m paramgraph``.

Takes words and flags; gives text on standard output (with ``--json`` one JSON object and nothing
else), progress on standard error, and an exit code: 0 done, 1 a check failed, 2 the input cannot be
used (one paragraph says why), 130 stopped from the keyboard. An error that nobody foresaw keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from paramgraph.cli import demo, evaluate, inspect, train, zoo
from paramgraph.cli.command import Answer, Command, UsageError, make_parser, parse
from paramgraph.errors import ParamGraphError

__all__ = ["COMMANDS", "Answer", "Command", "UsageError", "main"]

COMMANDS: tuple[Command, ...] = (
    demo.DEMO,
    inspect.INSPECT,
    zoo.BUILD_INRS,
    zoo.BUILD_CLASSIFIERS,
    zoo.INFO,
    train.TRAIN,
    evaluate.EVAL,
)
"""Every command, in the order of ``--help``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``paramgraph``; those of the process if None.

    Returns:
        The exit code.

    Raises:
        SystemExit: ``--help`` (code 0), or flags that do not exist or do not fit (code 2).
    """
    from paramgraph.report.plain import to_json

    command, arguments = parse(make_parser(COMMANDS), COMMANDS, argv)
    try:
        # What libraries print is no result.
        with contextlib.redirect_stdout(sys.stderr):
            answer = command.run(arguments)
    except ParamGraphError as error:
        print(f"paramgraph {' '.join(command.words)}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Finished parts are kept.", file=sys.stderr)
        return 130
    try:
        print(to_json(answer.data) if arguments.json else answer.text, flush=True)
    except BrokenPipeError:  # `paramgraph ... | head`
        sys.stderr.close()
    return answer.code
