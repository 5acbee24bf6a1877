"""The document of the laws: tables of what was measured, what is broken, what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.laws_subjects import OUT_OF_REACH, Subject, unexplained
from paramgraph.structure import ScaleKind
from paramgraph.testing import LAW_NAMES, CapturedNetworks, LawReport, LawRow

__all__ = ["markdown"]

_FIRST = (
    *("shape", "permutation", "sign", "scale", "phase", "combined"),
    *("batch of one", "mixed batch"),
)

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
