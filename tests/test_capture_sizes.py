"""The benchmark of real sizes: it runs, and it fails where a limit is not kept."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import capture_sizes
from benchmarks.capture_sizes import Row, main, problems

GOOD = Row(
    name="some",
    num_parameters=25 * 2**20,
    device="cpu",
    network_mb=100.0,
    time_s=2.0,
    extra_mb=49.0,
    forward_mb=10.0,
    input_shape=(2, 3),
    pickled_mb=0.5,
    structure_mb=1.0,
    num_free=4,
    num_frozen=1,
    log_group_size=100.0,
)


def test_limits() -> None:
    assert problems(GOOD) == []
    assert problems(replace(GOOD, time_s=10.5)) == ["time 10.5 s, allowed 10.0 s"]
    found = problems(replace(GOOD, extra_mb=60.0, pickled_mb=200.0))
    assert found == [
        "extra memory 60.0 MB, allowed 50.0 MB",
        "structure 200.0 MB, allowed 100.0 MB",
    ]


def test_a_limit_or_a_process_that_fails_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    for row, code in ((GOOD, 0), (replace(GOOD, time_s=11.0), 1), ("MemoryError: 7", 1)):
        monkeypatch.setattr(capture_sizes, "_in_a_process", lambda _, row=row: row)
        assert main(["--only", "GPT-2", "--out", str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert "FAILED some: time 11.0 s, allowed 10.0 s" in printed
    assert "FAILED GPT-2: MemoryError: 7" in printed
    assert json.loads((tmp_path / "capture_sizes.json").read_text())["rows"] == []


def test_without_transformers_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main() == 0
    assert "skipped, transformers is missing" in capsys.readouterr().out


def test_benchmarks_are_chosen_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    for name in list(command.BENCHMARKS):
        monkeypatch.setitem(command.BENCHMARKS, name, functools.partial(ran.append, name))
    assert command.main(["capture_sizes", "laws"]) == 0
    assert ran == ["capture_sizes", "laws"]
    assert command.main(["train"]) == 1
    assert "no benchmark 'train'; there are: fit_inrs, capture_sizes" in capsys.readouterr().err
    given: list[list[str]] = []

    def speed(words: list[str]) -> int:
        given.append(words)
        return 7

    monkeypatch.setattr("benchmarks.speed.main", speed)
    assert [command.main([]), command.main(["--quick"])] == [7, 7]
    assert given == [[], ["--quick"]]


@pytest.mark.slow
def test_a_small_network_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    main(["--only", "GPT-2 tiny", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "capture_sizes.json").read_text())
    row = data["rows"][0]
    assert row["num_parameters"] == 28_032
    assert row["num_free"] == 9
    assert row["unknown_operations"] == []
    assert 0 < row["time_s"] < 10
    assert 0 < row["pickled_mb"] < row["structure_mb"] < 1
    # So small a network can be smaller than what a run of it needs; no other limit is touched.
    assert all("extra memory" in text for text in data["failed"])
    assert "| GPT-2 tiny | 2 x 6 | 28,032 |" in (tmp_path / "capture_sizes.md").read_text()
