"""The document of the laws: its tables can be trusted, and it names all that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

import paramgraph.testing as pt
from benchmarks import laws
from benchmarks.laws_document import markdown
from benchmarks.laws_subjects import Subject, subjects, unexplained
from paramgraph.nn import CONFIGS
from paramgraph.nn.chains import ChainMetanetwork

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "laws.md"


@pytest.fixture(scope="module")
def networks() -> pt.CapturedNetworks:
    return pt.capture_networks(pt.hazard_networks()[:2])


def _report(*changed: pt.LawRow) -> pt.LawReport:
    """All laws hold on two networks, but for some rows."""
    other = {(row.law, row.network): row for row in changed}
    rows = [
        other.get((law, name)) or pt.LawRow(law, name, 3e-14, 1e-8)
        for law in pt.LAW_NAMES
        for name in ("mlp", "no_bias")
    ]
    return pt.LawReport("Mine", tuple(rows))


def _cells(text: str, title: str, law: str) -> str:
    """The cell of a metanetwork and a law in the one table that has both."""
    for table in text.split("\n\n"):
        lines = [[c.strip() for c in row.strip("|").split("|")] for row in table.splitlines()]
        if lines and law in lines[0]:
            (row,) = [row for row in lines if row[0] == title]
            return row[lines[0].index(law)]
    raise AssertionError(f"no table has the law {law!r}")


def test_a_cell_holds_the_worst_error_and_the_number_of_networks(
    networks: pt.CapturedNetworks,
) -> None:
    worse = pt.LawRow("permutation", "no_bias", 4e-9, 1e-8)
    small = pt.LawRow("sensitive", "mlp", 2e-3, 1e-5, must_exceed=True)
    large = pt.LawRow("sensitive", "no_bias", 5e-2, 1e-5, must_exceed=True)
    text = markdown({Subject("operator", "graph"): _report(worse, small, large)}, networks, "abc")
    assert _cells(text, "operator", "permutation") == "4e-09 (2)"
    assert _cells(text, "operator", "sensitive") == "2e-03 (2)"
    assert "at commit abc" in text
    assert "## Broken" not in text
    assert "## Refused" not in text


def test_what_does_not_apply_has_a_note_with_the_reason(networks: pt.CapturedNetworks) -> None:
    rows = [pt.LawRow("sign", name, None, 1e-8, "no promise") for name in ("mlp", "no_bias")]
    text = markdown({Subject("ng-gnn", "neuron"): _report(*rows)}, networks, "abc")
    assert _cells(text, "ng-gnn, neuron", "sign") == "- [1]"
    assert "\n1. no promise.\n" in text


def test_what_is_broken_is_listed_unless_it_is_out_of_reach(networks: pt.CapturedNetworks) -> None:
    row = pt.LawRow("wrong permutation", "mlp", 0.0, 1e-5, "0.weight", must_exceed=True)
    reports = {Subject(name, "graph"): _report(row) for name in ("operator", "statnn")}
    text = markdown(reports, networks, "abc")
    assert _cells(text, "operator", "wrong permutation") == "**0e+00**, broken on 1 of 2"
    assert _cells(text, "statnn", "wrong permutation") == "**0e+00**, broken on 1 of 2 [1]"
    assert "\n1. statistics of a tensor do not know the order of its entries.\n" in text
    assert "| operator | wrong permutation | mlp | 0e+00 | 0.weight |" in text
    assert "| statnn | wrong permutation | mlp" not in text
    assert [len(unexplained(subject, report)) for subject, report in reports.items()] == [1, 0]


def test_refused_networks_are_listed_with_what_is_said_of_them(
    networks: pt.CapturedNetworks,
) -> None:
    rows = [pt.LawRow(law, "mlp", None, 0.0, "refused: too wide") for law in pt.LAW_NAMES]
    text = markdown({Subject("operator", "graph"): _report(*rows)}, networks, "abc")
    assert '- operator, on mlp: "too wide"' in text
    assert _cells(text, "operator", "shape") == "3e-14 (1)"


def test_a_broken_law_makes_the_command_fail(
    networks: pt.CapturedNetworks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    row = pt.LawRow("sign", "mlp", 0.5, 1e-8)
    monkeypatch.setattr(laws, "_DOCUMENT", tmp_path / "laws.md")
    monkeypatch.setattr(laws, "capture_networks", lambda _: networks)
    monkeypatch.setattr(laws, "subjects", lambda: [Subject("operator", "graph")])
    for report, code in ((_report(row), 1), (_report(), 0)):
        monkeypatch.setattr(laws, "check", lambda *_, report=report: report)
        assert laws.main() == code
        out, error = capsys.readouterr()
        assert f"{code} broken" in out
        assert ("operator: sign on mlp: 5.0e-01" in error) == bool(code)
        assert (tmp_path / "laws.md").read_text().startswith("# The laws")


def test_networks_are_counted(networks: pt.CapturedNetworks) -> None:
    text = markdown({}, networks, "abc")
    # [3, 5, 4, 2] with biases; 9 hidden neurons, which ReLU lets scale.
    assert "| mlp | 14 | 43 | 54 | 9 | 0 | 9 | 0 |" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_each_named_metanetwork_can_be_made_at_its_levels(name: str) -> None:
    for subject in subjects([name]):
        if issubclass(subject.kind, ChainMetanetwork):
            assert subject.make(widths=[2, 3, 1]).level == subject.level
        else:
            assert subject.make().level == subject.level


def test_the_document_has_all_metanetworks_laws_and_networks() -> None:
    """Written by ``make laws``; to be run again when a metanetwork gets a name."""
    text = DOCUMENT.read_text()
    for subject in subjects():
        for law in pt.LAW_NAMES:
            assert _cells(text, subject.title, law)
    for network in pt.hazard_networks():
        assert f"| {network.name} |" in text
