"""Every metanetwork on every hazard network, all laws: writes docs/laws.md.

Each metanetwork that has a name is checked at each of its levels, small, in float64, on one core.
Fails where a law is broken that is not known to be out of reach.

    python -m benchmarks laws
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from paramgraph.errors import BatchError
from paramgraph.nn import CONFIGS, Metanetwork, make_metanetwork
from paramgraph.nn.chains import ChainMetanetwork, chain_options
from paramgraph.structure import ScaleKind
from paramgraph.testing import (
    LAW_NAMES,
    CapturedNetworks,
    LawReport,
    LawRow,
    capture_networks,
    check_metanetwork,
    hazard_networks,
)

__all__ = [
    "OPTIONS",
    "OUT_OF_REACH",
    "Subject",
    "check",
    "check_chains",
    "main",
    "markdown",
    "subjects",
    "unexplained",
]

_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "laws.md"
_OUT_DIM = 2

OPTIONS: dict[str, dict[str, Any]] = {
    "ng-gnn": {"hidden_dim": 8, "num_layers": 3, "num_frequencies": 16},
    "ng-gnn-inr": {"hidden_dim": 8, "num_layers": 3, "num_frequencies": 16},
    "statnn": {"hidden_dim": 32, "max_layers": 64},
    "flat-mlp": {"hidden_dim": 32},
}
"""Sizes by name, so that all is quick; those without a row are only made ``HIDDEN_DIM`` wide."""

HIDDEN_DIM = 8

OUT_OF_REACH: dict[tuple[str, str], str] = {
    ("StatNN", "wrong permutation"): "statistics of a tensor do not know the order of its entries",
    ("StatNN", "running statistics"): "only weights and biases are summarised",
    ("DeepSets", "wrong permutation"): "the set of entries does not say which meet at a neuron",
}
"""(class, law) to the reason why the method cannot keep the law; on no network is it expected."""

_LEVELS = ("graph", "neuron", "parameter")
_FIRST = (
    *("shape", "permutation", "sign", "scale", "phase", "combined"),
    *("batch of one", "mixed batch"),
)


@dataclass(frozen=True)
class Subject:
    """A metanetwork at one of its levels.

    Attributes:
        name: Key of ``CONFIGS``.
        level: What its outputs are about.
    """

    name: str
    level: str

    @property
    def title(self) -> str:
        """As in the tables."""
        return self.name if self.level == "graph" else f"{self.name}, {self.level}"

    @property
    def kind(self) -> type[Metanetwork]:
        """Its class."""
        return CONFIGS[self.name][0]

    def make(self, **further: Any) -> Metanetwork:
        """A small one, with the same weights each time."""
        accepted = inspect.signature(self.kind).parameters
        default = {"hidden_dim": HIDDEN_DIM} if "hidden_dim" in accepted else {}
        options = {**OPTIONS.get(self.name, default), **further}
        if "level" in accepted:
            options["level"] = self.level
        torch.manual_seed(0)
        return make_metanetwork(self.name, _OUT_DIM, **options)


def subjects(names: Iterable[str] = tuple(CONFIGS)) -> list[Subject]:
    """Every named metanetwork at every level that it has.

    Args:
        names: Keys of ``CONFIGS``.

    Example:
        >>> [subject.title for subject in subjects(["statnn"])]
        ['statnn']
    """
    found = []
    for name in names:
        kind, options = CONFIGS[name]
        levels = [options["level"]] if "level" in options else _LEVELS
        found += [Subject(name, level) for level in levels if level in kind.levels]
    return found


def check(subject: Subject, networks: CapturedNetworks) -> LawReport:
    """Check a metanetwork; one that is made for chains of given widths is made for each of them.

    Args:
        subject: Which metanetwork.
        networks: On what.

    Returns:
        One report for all networks; those that are no chains count as refused.
    """
    if not issubclass(subject.kind, ChainMetanetwork):
        return check_metanetwork(subject.make(), networks)
    return check_chains(subject.make, networks)


def check_chains(make: Callable[..., Metanetwork], networks: CapturedNetworks) -> LawReport:
    """Check a metanetwork for chains on all networks that are chains, those alike together.

    Args:
        make: Takes the options of ``chain_options``.
        networks: On what.
    """
    alike: dict[str, list[int]] = {}
    rows: list[LawRow] = []
    for number, row in enumerate(networks.networks):
        try:
            options = chain_options(row.graph)
        except BatchError as refusal:
            rows += [LawRow(law, row.name, None, 0.0, f"refused: {refusal}") for law in LAW_NAMES]
            continue
        ends = options["widths"][0], options["widths"][-1], options["num_positions"]
        alike.setdefault(repr(ends), []).append(number)
    name = ""
    for numbers in alike.values():
        options = chain_options(networks.networks[numbers[0]].graph)
        report = check_metanetwork(make(**options), networks.of(numbers))
        name, rows = report.name, [*report.rows, *rows]
    laws = {law: number for number, law in enumerate(LAW_NAMES)}
    place = {row.name: number for number, row in enumerate(networks.networks)}
    rows.sort(key=lambda row: (laws.get(row.law, -1), place.get(row.network, -1)))
    return LawReport(name, tuple(rows))


def unexplained(subject: Subject, report: LawReport) -> list[LawRow]:
    """What is broken and not out of reach."""
    return [r for r in report.failures if (subject.kind.__name__, r.law) not in OUT_OF_REACH]


def main() -> int:
    """Check all, write the document, print what is broken.

    Returns:
        1 if a law is broken that is not out of reach, else 0.
    """
    torch.set_num_threads(1)
    networks = capture_networks(hazard_networks())
    reports: dict[Subject, LawReport] = {}
    bar = tqdm(subjects(), unit="metanetwork", disable=None)
    for subject in bar:
        bar.set_postfix_str(subject.title)
        reports[subject] = check(subject, networks)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    _DOCUMENT.write_text(markdown(reports, networks, commit))
    num_broken = 0
    for subject, report in reports.items():
        for row in unexplained(subject, report):
            num_broken += 1
            print(f"{subject.title}: {row}", file=sys.stderr)
    num_checks = sum(row.applies for report in reports.values() for row in report.rows)
    print(f"{num_checks} checks of {len(reports)} metanetworks, {num_broken} broken: {_DOCUMENT}")
    return 1 if num_broken else 0


# ----------------------------------------------------------------------------------- document

_HEAD = """# The laws

What every metanetwork is held to, measured: largest errors over {num} small networks with one
hazard each, in float64, with untrained weights. A test for your own is `check_metanetwork`
(`paramgraph.testing`). Written by `make laws` at commit {commit}.

Errors are in units of the spread: the standard deviation of an output over networks of the same
architecture with other weights. Symmetries are drawn for each network: permutations, signs,
positive factors from 1/100 to 100, half periods of the biases of sines, and all that a metanetwork
promises at once. Outputs for a network must not change, outputs for neurons must go with the
neurons, outputs for parameters must transform like the parameters.

| law | what must hold | bound |
|---|---|---|
| shape | outputs have the shape of their level; entries, written and read again, stay | 0 |
| permutation, sign, phase | if promised: a drawn symmetry moves the outputs as it should | 1e-8 |
| scale | the same for positive factors | 1e-6 |
| combined | the same for all promised symmetries at once | 1e-8, with factors 1e-6 |
| batch of one | alone or among networks of its architecture: the same outputs | 1e-8 |
| mixed batch | with or without other architectures, in any order: the same outputs | 1e-8 |
| sensitive | other values in any one trained tensor change the outputs | > 1e-5 |
| running statistics | other values in any one running statistic change the outputs | > 1e-5 |
| wrong permutation | moving any one tensor alone changes the outputs (in any order) | > 1e-5 |
| spread | over other weights the outputs deviate by more than a share of their size | > 1e-3 |
| gradient | the gradient with respect to the weights is that of finite differences | 1e-5 |
| finite, zero weight | numbers that are not finite in float32, outputs and gradients | 0 |
| deterministic | numbers that differ when read twice | 0 |

Tensors that a network's function does not depend on (a bias before a norm) need not be seen.

Each law is itself tested on metanetworks with one defect (`tests/broken_twins.py`): it fails
there, and only there.
"""


def markdown(reports: Mapping[Subject, LawReport], networks: CapturedNetworks, commit: str) -> str:
    """The whole document.

    Args:
        reports: In the order in which they are listed.
        networks: What they are about.
        commit: Of the code.
    """
    lines = [_HEAD.format(num=len(networks.networks), commit=commit)]
    notes: dict[str, int] = {}
    second = [law for law in LAW_NAMES if law not in _FIRST]
    titles = (
        ("Symmetries and batches", "The largest error, and the number of networks.", _FIRST),
        (
            "Sensitivity and numbers",
            "The smallest change for what must change, the largest error for the rest, and the "
            "number of networks.",
            second,
        ),
    )
    for title, text, laws in titles:
        lines += [f"## {title}", "", text, ""]
        lines += [_table_head(["metanetwork", *laws])]
        for subject, report in reports.items():
            cells = [_cell(subject, _rows(report, law), notes) for law in laws]
            lines.append("| " + " | ".join([subject.title, *cells]) + " |")
        lines.append("")
    lines += [f"{number}. {note}" for note, number in notes.items()]
    lines += ["", *_broken(reports), *_refused(reports), *_networks(networks)]
    return "\n".join(lines).rstrip() + "\n"


def _table_head(names: Sequence[str]) -> str:
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def _rows(report: LawReport, law: str) -> list[LawRow]:
    return [row for row in report.rows if row.law == law]


def _cell(subject: Subject, rows: list[LawRow], notes: dict[str, int]) -> str:
    """Worst error and number of networks; a number in brackets is a note."""
    applied = [row for row in rows if row.applies]
    if not applied:
        reasons = [row.note for row in rows]
        reasons = [why for why in reasons if not why.startswith("refused: ")] or reasons
        return f"- {_note(max(reasons, key=reasons.count), notes)}"
    broken = [row for row in applied if not row.passed]
    errors = [row.error for row in broken or applied if row.error is not None]
    worst = (min if applied[0].must_exceed else max)(errors)
    if not broken:
        return f"{worst:.0e} ({len(applied)})" if worst else f"0 ({len(applied)})"
    reason = OUT_OF_REACH.get((subject.kind.__name__, applied[0].law))
    note = f" {_note(reason, notes)}" if reason else ""
    return f"**{worst:.0e}**, broken on {len(broken)} of {len(applied)}{note}"


def _note(text: str, notes: dict[str, int]) -> str:
    return f"[{notes.setdefault(text.rstrip('.') + '.', len(notes) + 1)}]"


def _broken(reports: Mapping[Subject, LawReport]) -> list[str]:
    """Broken laws that the method could keep, one by one."""
    rows = [(s, row) for s, report in reports.items() for row in unexplained(s, report)]
    if not rows:
        return []
    lines = ["## Broken", "", _table_head(["metanetwork", "law", "network", "error", "where"])]
    for subject, row in rows:
        cells = (subject.title, row.law, row.network, f"{row.error:.0e}", row.note or "-")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _refused(reports: Mapping[Subject, LawReport]) -> list[str]:
    """Networks that a metanetwork does not read, and what it says of them."""
    lines = []
    for subject, report in reports.items():
        refused = [row for row in _rows(report, "shape") if row.note.startswith("refused: ")]
        if refused:
            names = ", ".join(row.network for row in refused)
            said = refused[0].note.removeprefix("refused: ")
            lines.append(f'- {subject.title}, on {names}: "{said}"')
    if not lines:
        return []
    text = "What a metanetwork was not made for it refuses; the message is that for the first one."
    return ["## Refused", "", text, "", *lines, ""]


def _networks(networks: CapturedNetworks) -> list[str]:
    heads = ("network", "neurons", "edges", "parameters", "permuted", "signs", "scales", "phases")
    lines = ["## Networks", "", "Neurons that can be permuted, negated, scaled, shifted.", ""]
    lines.append(_table_head(heads))
    for row in networks.networks:
        graph = row.graph
        free = sum(group.size for group in graph.axis_groups if group.free and group.size > 1)
        kinds = (ScaleKind.SIGN, ScaleKind.POSITIVE, ScaleKind.PHASE)
        scaled = [sum(g.size for g in graph.scale_groups if g.kind is kind) for kind in kinds]
        numbers = (graph.num_neurons, graph.num_edges, graph.num_parameters, free, *scaled)
        lines.append("| " + " | ".join([row.name, *map(str, numbers)]) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
