"""The Hugging Face Hub: what is fetched from a repository, and put into one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from paramgraph.errors import CheckpointError

__all__ = ["download", "upload"]

# A repository of the Hub: "name" or "owner/name".
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def download(repo: str, files: list[str], *, revision: str | None, token: str | None) -> Path:
    """A folder in the cache with these files of a repository.

    Raises:
        CheckpointError: No repository can have that name, or the Hub gives none.
        ImportError: huggingface_hub is not installed.
    """
    if not _REPOSITORY.fullmatch(repo):
        raise CheckpointError(
            f"there is no folder '{repo}', and it is no repository of the Hub ('owner/name')."
        )
    hub = _hub(f"read {repo!r}, which is no folder here, from the Hugging Face Hub")
    try:
        found = hub.snapshot_download(repo, revision=revision, token=token, allow_patterns=files)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"there is no folder '{repo}' here, and the Hugging Face Hub gives no repository of "
            f"that name: {error}"
        ) from error
    return Path(found)


def upload(
    repo: str, folder: str, *, private: bool, revision: str | None, token: str | None
) -> None:
    """Put the files of a folder into a repository, which is made where there is none.

    Raises:
        CheckpointError: The Hub refuses, or cannot be reached.
        ImportError: huggingface_hub is not installed.
    """
    hub = _hub(f"upload to {repo!r}")
    try:
        hub.create_repo(repo, private=private, exist_ok=True, token=token)
        hub.upload_folder(repo_id=repo, folder_path=folder, revision=revision, token=token)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot upload to {repo!r}: {error}") from error


def _hub(purpose: str) -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"cannot {purpose}: this needs huggingface_hub: pip install 'paramgraph[hub]'."
        ) from error
