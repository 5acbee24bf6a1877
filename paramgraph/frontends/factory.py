"""A network from the code of the user: a class or function by its import path, and its weights."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from paramgraph.errors import CaptureError, CheckpointError
from paramgraph.frontends.loaded import LoadedNetwork
from paramgraph.storage import load_state_dict

__all__ = ["build_from_factory", "import_network", "load_weights"]


def build_from_factory(factory: str, state_file: str | os.PathLike[str]) -> LoadedNetwork:
    """Build a network by calling a function, and load weights from a file into it.

    Args:
        factory: ``module:function`` (or a class, or a network) that needs no arguments. Importing
            a module runs it: name only code that you trust.
        state_file: The weights, in any format of ``paramgraph.storage.load_state_dict``; they are
            never unpickled freely.

    Returns:
        The network with these weights; its ``example_inputs`` is None.

    Raises:
        CaptureError: The module or function does not exist, or gives no network.
        CheckpointError: The file cannot be read safely, or does not fit the network.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(nn.Identity().state_dict() | nn.PReLU().state_dict(), f"{folder}/w.pt")
        ...     build_from_factory("torch.nn:PReLU", f"{folder}/w.pt").network
        PReLU(num_parameters=1)
    """
    network = import_network(factory)
    load_weights(network, load_state_dict(state_file), str(state_file))
    return LoadedNetwork(network.eval(), None)


def import_network(path: str) -> nn.Module:
    """The network at ``module:attribute``: an instance, or a class or function without arguments.

    Modules in the current folder are found too. Importing a module runs it: name only your own.

    Raises:
        CaptureError: The module or attribute does not exist, or is no network.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise CaptureError(f"expected module:attribute (as in my_networks:make_cnn), got {path!r}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is missing inside theirs is their error, with its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise CaptureError(
            f"there is no module {error.name!r} in the current folder or the installed packages."
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not hasattr(module, attribute):
        raise CaptureError(f"module {module_name!r} has no attribute {attribute!r}.")
    found = getattr(module, attribute)
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    if not isinstance(found, nn.Module):
        raise CaptureError(f"{path} gives {type(found).__name__}, but expected a torch.nn.Module.")
    return found


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into a network it fits exactly.

    Raises:
        CheckpointError: Entries are missing, additional or of another shape; the first is named.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    additional = [name for name in state if name not in own]
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if not (missing or additional or shapes):
        network.load_state_dict(dict(state))
        return
    problems = []
    if missing:
        problems.append(f"{len(missing)} entries are missing (first {missing[0]!r})")
    if additional:
        problems.append(f"{len(additional)} are not part of it (first {additional[0]!r})")
    if shapes:
        name = shapes[0]
        problems.append(
            f"{len(shapes)} have another shape (first {name!r}: expected "
            f"{tuple(own[name].shape)}, got {tuple(state[name].shape)})"
        )
    raise CheckpointError(
        f"the weights in {source} do not fit {type(network).__name__}: {'; '.join(problems)}. "
        "They may be of another architecture."
    )
