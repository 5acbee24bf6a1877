"""Documents: their code runs, their commands exist, and what is generated is up to date.

``python tests/test_docs.py`` writes the table of rules in docs/capture.md anew.
"""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CAPTURE = ROOT / "docs" / "capture.md"
DOCUMENTS = sorted([README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]) + sorted(
    (ROOT / "docs").glob("*.md")
)


def operations_table() -> str:
    """The table of rules of capture: one row per rule, in reading order."""
    from paramgraph.capture.axis_rules import FAMILIES, RULES

    lines = ["| family | rule | operations |", "|---|---|---|"]
    for family in FAMILIES:
        names: dict[str, list[str]] = {}
        texts: dict[str, str] = {}
        for name, rule in RULES.items():
            if rule.__module__ == family.__name__:
                names.setdefault(rule.__name__, []).append(name.partition(".")[2])
                assert rule.__doc__, f"rule {rule.__name__} of {family.__name__}: no docstring"
                texts[rule.__name__] = rule.__doc__.splitlines()[0]
        title = family.__name__.rpartition(".")[2]
        for rule_name, operations in names.items():
            listed = ", ".join(f"`{name}`" for name in sorted(operations))
            lines.append(f"| {title} | {texts[rule_name]} | {listed} |")
            title = ""
    return "\n".join(lines)


def part(text: str, name: str) -> str:
    """What stands between the two markers of that name."""
    found = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert len(found) == 1, f"expected the markers of '{name}' once, found {len(found)}"
    return found[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language (empty for blocks without one)."""
    found: list[tuple[str, list[str]]] = []
    is_open = False
    for line in text.splitlines():
        if line.startswith("```"):
            is_open = not is_open
            if is_open:
                found.append((line.removeprefix("```").strip(), []))
        elif is_open:
            found[-1][1].append(line)
    return ["\n".join(lines) + "\n" for name, lines in found if name == language]


def python_blocks() -> list[tuple[str, str]]:
    """Name and code of every Python block in the documents."""
    return [
        (f"{path.name}-{number}", code)
        for path in DOCUMENTS
        for number, code in enumerate(blocks(path.read_text(), "python"))
    ]


def commands(text: str, program: str) -> list[list[str]]:
    """Lines of plain blocks that call a program, as words."""
    return [
        shlex.split(line, comments=True)
        for block in blocks(text, "")
        for line in block.splitlines()
        if line.startswith(f"{program} ")
    ]


# --- code


@pytest.mark.parametrize(("name", "code"), python_blocks(), ids=[n for n, _ in python_blocks()])
def test_python_block_runs(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {})


def test_readme_shows_python() -> None:
    assert sum(name.startswith("README") for name, _ in python_blocks()) >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert "verification passed" in capsys.readouterr().out


# --- commands


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paramgraph_commands_fit_the_command_line(path: Path) -> None:
    pytest.importorskip("jsonargparse")
    from paramgraph.cli import COMMANDS
    from paramgraph.cli.command import make_parser, parse

    parser = make_parser(COMMANDS)
    for words in commands(path.read_text(), "paramgraph"):
        parse(parser, COMMANDS, words[1:])  # leaves with code 2 if a flag does not exist


def test_readme_shows_every_command() -> None:
    pytest.importorskip("jsonargparse")
    from paramgraph.cli import COMMANDS

    shown = commands(README.read_text(), "paramgraph")
    for command in COMMANDS:
        if command.words != ("demo",):  # `make demo`
            assert any(tuple(words[1 : 1 + len(command.words)]) == command.words for words in shown)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text()
    named = {words[1] for words in commands(text, "make")}
    named |= set(re.findall(r"`make ([a-z-]+)`", text))
    assert named <= targets


# --- generated parts and links


def stages() -> list[str]:
    """Files and folders of the package, without data and caches."""
    found = [
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "paramgraph").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    return sorted(found)


def tree_of(text: str) -> dict[str, str]:
    """Name and comment of each line of the tree."""
    lines = part(text, "tree").strip().strip("`").strip().splitlines()
    assert lines[0] == "paramgraph/"
    pairs = [line.split(None, 1) for line in lines[1:]]
    return {name: comment[0] if comment else "" for name, *comment in pairs}


def test_readme_tree_is_the_package() -> None:
    tree = tree_of(README.read_text())
    assert sorted(tree) == stages()
    assert all(tree.values())  # a comment each


def test_readme_tree_is_in_the_order_of_imports() -> None:
    from test_imports import STAGES

    names = [name.rstrip("/").removesuffix(".py") for name in tree_of(README.read_text())]
    assert names == list(STAGES)


def test_the_docs_list_the_operations_with_a_rule() -> None:
    assert part(CAPTURE.read_text(), "operations").strip() == operations_table()


def test_readme_keeps_the_place_of_the_demo_output() -> None:
    shown = part(README.read_text(), "demo-output").strip()
    assert shown == "" or (shown.startswith("```") and shown.endswith("```"))


def test_readme_names_every_metanetwork() -> None:
    from paramgraph.nn import CONFIGS

    assert all(f"`{name}`" in README.read_text() for name in CONFIGS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in headings
        elif "://" not in link:
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_path_of_a_machine_is_shown(path: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", path.read_text()) == []


if __name__ == "__main__":
    old = CAPTURE.read_text()
    CAPTURE.write_text(
        old.replace(
            f"<!-- operations -->\n{part(old, 'operations')}",
            f"<!-- operations -->\n{operations_table()}\n",
        )
    )
