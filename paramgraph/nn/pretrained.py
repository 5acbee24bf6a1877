"""Saving metanetworks and building them again: one file, a folder, or the Hugging Face Hub.

A metanetwork remembers how it was built: its class and the arguments of its constructor. These are
written beside its weights as plain JSON; nothing is pickled, and no name in a file is imported.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from paramgraph.errors import CheckpointError
from paramgraph.nn.hub import download, upload
from paramgraph.storage import load_tensors, save_tensors, write_atomic

__all__ = ["Pretrained"]

_FORMAT = 2
_KEY = "paramgraph_metanetwork"  # of the number of the format
_TENSORS, _CONFIG = "model.safetensors", "config.json"
_FIELDS = {"class": str, "out_dim": int, "level": str, "options": dict}


class Pretrained(nn.Module):
    """Remembers its class and arguments, so that it can be stored and built again.

    For subclasses with the attributes ``out_dim`` and ``level`` whose arguments are plain JSON
    (numbers, strings, lists, dicts, ``None``).
    """

    out_dim: int
    level: Any
    setting: str | None = None
    """Key of ``CONFIGS`` that it was made from, if any."""
    _call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the arguments."""
        self = super().__new__(cls)
        object.__setattr__(self, "_call", (args, kwargs))
        return self

    @property
    def config(self) -> dict[str, Any]:
        """Class, setting, ``out_dim``, ``level``, and all other arguments of the constructor.

        Example:
            >>> from paramgraph.nn import StatNN
            >>> StatNN(3, hidden_dim=8).config["options"]
            {'hidden_dim': 8, 'max_layers': 16, 'dropout': 0.0}
        """
        args, kwargs = self._call
        bound = inspect.signature(type(self)).bind(*args, **kwargs)
        bound.apply_defaults()
        options = dict(bound.arguments)
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                options |= options.pop(name)
        top: dict[str, Any] = {"out_dim": self.out_dim, "level": self.level}
        others = {name: value for name, value in options.items() if name not in top}
        return {"class": type(self).__name__, "name": self.setting, **top, "options": others}

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take over stored weights.

        Args:
            tensors: A state dict of the same class and options.
            source: Where they come from, for the message.

        Raises:
            CheckpointError: The tensors are not those of this metanetwork.
        """
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise CheckpointError(
                f"{source} does not fit {type(self).__name__} with {self.config['options']}: "
                f"{error}"
            ) from error

    def save_file(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write weights and configuration to one safetensors file, atomically.

        Args:
            path: File to write.
            extra: Further JSON-able facts for the header (task, zoo, metrics).

        Raises:
            CheckpointError: The file cannot be written, or an argument is not plain JSON.
        """
        header = {_KEY: _FORMAT, **self.config, "extra": extra or {}}
        save_tensors(path, self.state_dict(), header)

    @classmethod
    def load_file(cls, path: str | os.PathLike[str]) -> tuple[Self, dict[str, Any]]:
        """Build what ``save_file`` wrote.

        Returns:
            The metanetwork in evaluation mode and in its precision, on the CPU; and ``extra``.

        Raises:
            CheckpointError: The file is damaged, of another format, or holds another class.
        """
        tensors, header = load_tensors(path)
        return cls._filled(tensors, _checked(header, path), path), header.get("extra", {})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json`` to a folder, each of them atomically.

        Args:
            folder: It is made where there is none.

        Raises:
            CheckpointError: It cannot be written, or an argument is not plain JSON.

        Example:
            >>> import tempfile
            >>> from paramgraph.nn import Metanetwork, StatNN
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     StatNN(3, hidden_dim=8).save_pretrained(folder)
            ...     type(Metanetwork.from_pretrained(folder)).__name__
            'StatNN'
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write to the folder '{target}': {error.strerror or error}."
            ) from error
        self.save_file(target / _TENSORS)
        text = json.dumps({_KEY: _FORMAT, **self.config}, indent=2)
        write_atomic(target / _CONFIG, f"{text}\n".encode())

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Build what ``save_pretrained`` or ``push_to_hub`` wrote.

        Args:
            folder_or_repo: A folder, or where there is none of that name, a repository
                ``"owner/name"`` of the Hugging Face Hub.
            revision: Branch, tag or commit of the repository.
            token: For repositories that are not public.

        Returns:
            The metanetwork in evaluation mode and in its precision, on the CPU.

        Raises:
            CheckpointError: There is no such folder or repository, or it holds no metanetwork, one
                of another class or format, or files that do not belong together.
            ImportError: It is a repository, and huggingface_hub is not installed.
        """
        folder = Path(folder_or_repo)
        if not folder.is_dir():
            files = [_CONFIG, _TENSORS]
            folder = download(str(folder_or_repo), files, revision=revision, token=token)
        try:
            config = json.loads((folder / _CONFIG).read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"'{folder}' holds no metanetwork: its {_CONFIG} cannot be read ({error}). "
                "Expected a folder that save_pretrained wrote."
            ) from error
        _checked(config, folder / _CONFIG)
        tensors, header = load_tensors(folder / _TENSORS)
        for name, value in config.items():
            if header.get(name) != value:
                raise CheckpointError(
                    f"the files of '{folder}' do not belong together: {name} is {value!r} in "
                    f"{_CONFIG}, but {header.get(name)!r} in {_TENSORS}. Save the metanetwork "
                    "again."
                )
        return cls._filled(tensors, config, folder)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> None:
        """Upload what ``save_pretrained`` writes to a repository of the Hugging Face Hub.

        Args:
            repo: ``"owner/name"``; it is made where there is none.
            private: Whether a new one is hidden from others.
            revision: Branch to upload to.
            token: Access token, the stored one when not given.

        Raises:
            CheckpointError: The Hub refuses, or cannot be reached.
            ImportError: huggingface_hub is not installed.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            upload(repo, folder, private=private, revision=revision, token=token)

    @classmethod
    def _filled(
        cls,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str | os.PathLike[str],
    ) -> Self:
        """A new metanetwork with these weights, in their precision, in evaluation mode."""
        metanetwork = cls._built(config, str(source))
        kinds = list({t.dtype for t in tensors.values() if t.is_floating_point()})
        if len(kinds) > 1:
            raise CheckpointError(
                f"{source} holds tensors of several precisions "
                f"({', '.join(sorted(map(str, kinds)))}): convert the metanetwork with .float() or "
                ".double(), and save it again."
            )
        if kinds:
            metanetwork.to(kinds[0])
        metanetwork.load(tensors, str(source))
        return metanetwork.eval()

    @classmethod
    def _built(cls, config: Mapping[str, Any], source: str) -> Self:
        """A new metanetwork of the class and arguments of ``config``."""
        kind = cls._class_named(config["class"], source)
        parameters = inspect.signature(kind).parameters
        top = {name: config[name] for name in ("out_dim", "level")}
        given = {name: value for name, value in top.items() if name in parameters}
        try:
            metanetwork = kind(**config["options"], **given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{source} was written by another version of {kind.__name__}, or is damaged: it "
                f"cannot be built with {config['options']} ({error})."
            ) from error
        for name, value in top.items():
            if getattr(metanetwork, name) != value:
                raise CheckpointError(
                    f"{source} says {name}={value!r}, but {kind.__name__} with its options has "
                    f"{getattr(metanetwork, name)!r}."
                )
        metanetwork.setting = config.get("name")
        return metanetwork

    @classmethod
    def _class_named(cls, name: str, source: str) -> type[Self]:
        """The class itself or the subclass of that name."""
        found, todo = {}, [cls]
        while todo:
            kind = todo.pop()
            found[kind.__name__] = kind
            todo += kind.__subclasses__()
        if name not in found:
            raise CheckpointError(
                f"{source} holds a {name}, which is no {cls.__name__} that is known here: load it "
                "with Metanetwork, or import the module that defines it first."
            )
        return found[name]


def _checked(config: Any, source: str | os.PathLike[str]) -> Mapping[str, Any]:
    """A configuration of this format with all its fields."""
    found = config.get(_KEY) if isinstance(config, dict) else None
    if found != _FORMAT:
        raise CheckpointError(
            f"{source} holds no metanetwork of format {_FORMAT}: it says {found!r}. Give a file "
            "that save_file wrote (best.safetensors of a run folder) or a folder of "
            "save_pretrained, written by this version."
        )
    for name, kind in _FIELDS.items():
        if not isinstance(config.get(name), kind):
            raise CheckpointError(
                f"{source} is damaged: {name} must be of type {kind.__name__}, got "
                f"{config.get(name)!r}."
            )
    checked: Mapping[str, Any] = config
    return checked
