"""The report: a table per family, what failed, and totals; the same as data."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.coverage.measuring import Measurement

__all__ = ["line", "markdown", "totals", "write"]

_HEAD = (
    "| architecture | parameters | groups free / frozen | log group size | unknown operations "
    "| largest error | computed in | round trip | complete | as by hand | teeth | seconds |\n"
    "|---|--:|--:|--:|---|--:|---|---|---|---|--:|--:|"
)


def line(row: Measurement) -> str:
    """A row for the terminal."""
    if row.passed:
        groups = f"{row.num_free} free, {row.num_frozen} frozen"
        found = f"ok      error {row.max_error:.0e} ({row.precision}), {groups}"
        found += f", teeth {_teeth(row)}"
    else:
        found = f"FAILED  {'; '.join(row.problems)}"
    return f"{row.family}: {row.name:28s} {row.time_s:5.1f} s  {found}"


def totals(rows: Sequence[Measurement]) -> dict[str, float]:
    """Counts over all rows.

    Args:
        rows: All of them.

    Returns:
        Name to number, for example ``passed``.
    """
    errors = [row.max_error for row in rows if row.passed and row.max_error is not None]
    teeth = [row.teeth for row in rows if row.teeth is not None]
    unexplained = sum(len(one.unexplained) for one in teeth)
    noticed = sum(one.noticed for one in teeth)
    return {
        "architectures": len(rows),
        "passed": sum(row.passed for row in rows),
        "failed": sum(not row.passed for row in rows),
        "in float64 throughout": sum(row.precision == "float64" for row in rows),
        "with unknown operations": sum(bool(row.unknown_operations) for row in rows),
        "free axis groups": sum(row.num_free or 0 for row in rows),
        "frozen axis groups": sum(row.num_frozen or 0 for row in rows),
        "largest error of those that passed": max(errors, default=0.0),
        "with the groups worked out by hand": sum(row.expected == "yes" for row in rows),
        "with fewer, a known limit": sum(row.expected == "fewer" for row in rows),
        "pairs permuted in one tensor only": sum(one.tried for one in teeth),
        "of these noticed": noticed,
        "of these in dead weights": sum(len(one.dead) for one in teeth),
        "of these unexplained": unexplained,
        "percent noticed of those in live weights": round(
            100 * noticed / max(noticed + unexplained, 1), 2
        ),
        "seconds of all processes": round(sum(row.time_s for row in rows), 1),
    }


def markdown(rows: Sequence[Measurement], environment: Mapping[str, str]) -> str:
    """The whole report.

    Args:
        rows: In the order in which they are listed.
        environment: What the numbers depend on, for example versions.
    """
    text = ["# Coverage: architectures captured and verified", ""]
    text += [f"{name}: {value}  " for name, value in environment.items()]
    for family, group in itertools.groupby(rows, key=lambda row: row.family):
        text += ["", f"## {family[0].upper()}{family[1:]}", "", _HEAD]
        text += [_row(row) for row in group]
    failed = [row for row in rows if not row.passed]
    text += ["", f"## Failed: {len(failed)}", ""]
    text += [f"- {row.family}: **{row.name}**: {'; '.join(row.problems)}" for row in failed]
    unknown = Counter(operation for row in rows for operation in row.unknown_operations)
    text += ["", "## Operations without a rule", ""]
    text += [
        f"- `{operation}`: {count} architectures" for operation, count in unknown.most_common()
    ]
    text += ["", "## Permuted in one tensor only, and not noticed", ""]
    for row in rows:
        if row.teeth is not None:
            text += [f"- {row.name}: `{pair}`" for pair in row.teeth.unexplained]
            text += [
                f"- {row.name}: `{pair}` (dead: noise is not noticed either)"
                for pair in row.teeth.dead
            ]
    text += ["", "## Totals", "", "| what | number |", "|---|--:|"]
    text += [
        f"| {name} | {number:,.3g} |"
        if isinstance(number, float) and number < 1
        else f"| {name} | {number:,} |"
        for name, number in totals(rows).items()
    ]
    return "\n".join(text) + "\n"


def write(rows: Sequence[Measurement], environment: Mapping[str, str], folder: Path) -> None:
    """Write ``coverage.md`` and ``coverage.json``.

    Args:
        rows: In the order in which they are listed.
        environment: What the numbers depend on.
        folder: Where to; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.md").write_text(markdown(rows, environment))
    data = {
        "environment": dict(environment),
        "totals": totals(rows),
        "architectures": [{**dataclasses.asdict(row), "passed": row.passed} for row in rows],
    }
    (folder / "coverage.json").write_text(json.dumps(data, indent=1) + "\n")


def _row(row: Measurement) -> str:
    cells = (
        row.name,
        _number(row.num_parameters, ",d"),
        f"{_number(row.num_free, 'd')} / {_number(row.num_frozen, 'd')}",
        _number(row.log_group_size, ".1f"),
        ", ".join(f"`{operation}`" for operation in row.unknown_operations) or "-",
        _number(row.max_error, ".0e") if row.passed else "**FAILED**",
        row.precision or "-",
        _truth(row.round_trip),
        _truth(row.complete),
        row.expected or "-",
        _teeth(row),
        f"{row.time_s:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _teeth(row: Measurement) -> str:
    """Noticed of tried, for example ``38/40, 1 dead, 1 unexplained``."""
    if row.teeth is None:
        return "-"
    found = [f"{row.teeth.noticed}/{row.teeth.tried}"]
    found += [f"{len(row.teeth.dead)} dead"] if row.teeth.dead else []
    found += [f"**{len(row.teeth.unexplained)} unexplained**"] if row.teeth.unexplained else []
    return ", ".join(found)


def _truth(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "**no**"
