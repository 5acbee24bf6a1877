"""On what a result was measured: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment"]

_PACKAGES = ("torch", "numpy", "scipy", "lightning", "scikit-learn", "paramgraph")


def environment() -> dict[str, Any]:
    """Python, packages, processor count and, in a checkout with git, the commit.

    Example:
        >>> sorted(environment())
        ['commit', 'cores', 'system', 'versions']
    """
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # paramgraph itself, run from a checkout
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "commit": _commit(),
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
    }


def _commit() -> str | None:
    """The commit of the checkout that this file is in, with ``+`` if it was changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package inside someone else's repository
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()
