"""Rules about the source itself: import order, light import, file names, pins, docstrings.

Each rule is a function that returns a list of violations, so that the rule can also be shown to
fail on a planted violation.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "paramgraph"

# A file imports only from stages above its own. A folder is one stage. The package's own
# ``__init__`` stands above the command line: it may import all stages, and no stage imports it.
STAGES = (
    "errors",
    "storage",
    "structure",
    "views",
    "values",
    "symmetry",
    "explicit",
    "graph",
    "capture",
    "frontends",
    "batch",
    "engine",
    "nn",
    "testing",
    "zoo",
    "tasks",
    "report",
    "__init__",
    "cli",
    "__main__",
)

# Slow to import or optional: loaded by the functions that need them, not by `import paramgraph`.
LAZY = (
    "lightning",
    "torch_geometric",
    "scipy",
    "pyarrow",
    "jsonargparse",
    "matplotlib",
    "sklearn",
    "transformers",
    "huggingface_hub",
    "onnx",
    "tensorboard",
)

VAGUE = ("utils", "util", "helpers", "helper", "common", "base", "misc")


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- (a) stage order


def _stage_of(path: str) -> str:
    """The stage of ``paramgraph/nn/heads.py`` is ``nn``, of ``paramgraph/graph.py`` ``graph``."""
    return path.split("/")[1].removesuffix(".py")


def _stage_of_module(name: str) -> str:
    """The stage of the module ``paramgraph.nn.heads`` is ``nn``, of ``paramgraph`` ``__init__``."""
    return [*name.split("."), "__init__"][1]


def _imported_modules(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and dotted name of each module of ours that a file imports, at any depth."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(above + ([node.module] if node.module else []))
            if (
                module == "paramgraph"
            ):  # `from paramgraph import graph` names a stage, or a public name
                names = [f"paramgraph.{a.name}" if a.name in STAGES else module for a in node.names]
            else:
                names = [module]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)  # importlib.import_module("paramgraph.cli")
            names = (
                [str(node.args[0].value)]
                if function.endswith(("import_module", "__import__"))
                else []
            )
        else:
            continue
        for name in names:
            if name.split(".")[0] == "paramgraph":
                yield node.lineno, name


def stage_violations(path: str, source: str) -> list[str]:
    """List the imports of one file that go against the order of ``STAGES``."""
    own = _stage_of(path)
    if own not in STAGES:
        return [f"{path}: stage '{own}' has no place in the import order; add it to STAGES"]
    found = []
    for line, name in _imported_modules(path, source):
        stage = _stage_of_module(name)
        if stage not in STAGES:
            found.append(f"{path}:{line} imports '{name}', which has no place in the import order")
        elif stage != own and STAGES.index(stage) > STAGES.index(own):
            found.append(f"{path}:{line} imports '{name}': '{stage}' stands below '{own}'")
    return found


@pytest.mark.parametrize("path", _sources(), ids=_relative)
def test_file_imports_only_from_stages_above(path: Path) -> None:
    assert stage_violations(_relative(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("paramgraph/graph.py", "from paramgraph.batch import collate"),
        ("paramgraph/graph.py", "import paramgraph.cli as command"),
        ("paramgraph/graph.py", "from paramgraph import capture"),
        ("paramgraph/graph.py", "from paramgraph import collate"),
        ("paramgraph/graph.py", "import paramgraph as pg"),
        ("paramgraph/graph.py", "from . import engine"),
        ("paramgraph/graph.py", "from .capture.trace import trace"),
        ("paramgraph/graph.py", "def f():\n    from paramgraph.capture import capture"),
        ("paramgraph/graph.py", "if TYPE_CHECKING:\n    from paramgraph.nn import heads"),
        ("paramgraph/graph.py", "m = importlib.import_module('paramgraph.zoo')"),
        ("paramgraph/capture/trace.py", "from ..engine import reduce"),
        ("paramgraph/__init__.py", "from paramgraph.cli import main"),
        ("paramgraph/graph.py", "from paramgraph.nowhere import x"),
        ("paramgraph/nowhere.py", ""),
    ],
)
def test_stage_rule_notices_a_planted_violation(path: str, source: str) -> None:
    assert len(stage_violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("paramgraph/graph.py", "import torch\nfrom paramgraph.errors import GraphError"),
        ("paramgraph/graph.py", "from . import symmetry\nfrom .values import features"),
        (
            "paramgraph/capture/trace.py",
            "from .axes import Axis\nfrom . import rules\nfrom ..graph import G",
        ),
        ("paramgraph/__init__.py", "from paramgraph.tasks import train"),
        ("paramgraph/cli.py", "import paramgraph as pg"),
    ],
)
def test_stage_rule_accepts_the_right_order(path: str, source: str) -> None:
    assert stage_violations(path, source) == []


# --- (b) a light import


def modules_loaded_by(statement: str) -> list[str]:
    """List the modules of ``LAZY`` that a fresh interpreter has loaded after the statement."""
    code = f"import sys\n{statement}\nprint('loaded:', *[m for m in {LAZY} if m in sys.modules])"
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("loaded:")[1].split()


def test_import_paramgraph_loads_nothing_heavy() -> None:
    assert modules_loaded_by("import paramgraph") == []


def test_light_import_rule_notices_a_planted_violation() -> None:
    assert modules_loaded_by("import scipy") == ["scipy"]


# --- (c) file names that say nothing


def vague_names(paths: list[str]) -> list[str]:
    """List the paths with a file or folder whose name does not say what is in it."""
    return [
        path
        for path in paths
        if any(p.removesuffix(".py").strip("_") in VAGUE for p in path.split("/"))
    ]


def test_no_file_has_a_vague_name() -> None:
    assert vague_names([_relative(path) for path in _sources()]) == []


def test_vague_name_rule_notices_a_planted_violation() -> None:
    bad = ["paramgraph/utils.py", "paramgraph/nn/_base.py", "paramgraph/common/io.py"]
    assert vague_names([*bad, "paramgraph/graph.py"]) == bad


# --- (d) pins


def bad_pins(text: str) -> list[str]:
    """List the lines that would bind a user to one build, one machine, or no version at all.

    ``torch==2.13.0+cpu`` shuts out each other build; ``x @ file:///y`` exists on one machine only.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    bad = [line for line in text.splitlines() if "+" in line]
    return bad + [line for line in lines if "==" not in line or "/" in line or "@" in line]


def test_constraints_pin_versions_and_not_builds() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "torch==" in text
    assert bad_pins(text) == []


@pytest.mark.parametrize("line", ["torch==2.13.0+cpu", "torch @ file:///tmp/torch.whl", "torch>=2"])
def test_pin_rule_notices_a_planted_violation(line: str) -> None:
    assert bad_pins(f"# comment\nnumpy==2.4.6\n{line}\n") == [line]


# --- (e) docstrings of public names


def missing_docstrings(module: types.ModuleType) -> list[str]:
    """List the names in ``__all__`` that do not exist or lack a docstring."""
    found = []
    for name in getattr(module, "__all__", ()):
        if not hasattr(module, name):
            found.append(f"{module.__name__}.{name} is in __all__ but does not exist")
            continue
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
            continue  # a constant or an instance
        text = (value.__doc__ or "").strip()
        if not text or text.startswith(
            f"{name}("
        ):  # the second is what @dataclass writes by itself
            found.append(f"{module.__name__}.{name} has no docstring")
    return found


def _existing_stages() -> list[str]:
    found = [
        s
        for s in STAGES
        if (PACKAGE / f"{s}.py").exists() or (PACKAGE / s / "__init__.py").exists()
    ]
    return [stage for stage in found if stage not in ("__init__", "__main__")]


@pytest.mark.parametrize("stage", _existing_stages())
def test_public_names_have_docstrings(stage: str) -> None:
    try:
        module = importlib.import_module(f"paramgraph.{stage}")
    except ModuleNotFoundError as error:  # a machine without, say, jsonargparse
        if (error.name or "").split(".")[0] in LAZY:
            pytest.skip(f"{error.name} is not installed here")
        raise
    assert missing_docstrings(module) == []


def test_docstring_rule_notices_planted_violations() -> None:
    source = """
from dataclasses import dataclass
import enum
__all__ = ["Bad", "BadData", "BadKind", "LIMIT", "bad", "gone", "good"]
LIMIT = 3
class Bad(ValueError): pass
@dataclass
class BadData:
    size: int
class BadKind(enum.Enum):
    ONE = 1
def bad(): pass
def good():
    "Do it."
"""
    module = types.ModuleType("planted")
    sys.modules["planted"] = module  # dataclass looks its module up
    try:
        exec(source, module.__dict__)
    finally:
        del sys.modules["planted"]
    names = [line.split()[0].removeprefix("planted.") for line in missing_docstrings(module)]
    assert names == ["Bad", "BadData", "BadKind", "bad", "gone"]
