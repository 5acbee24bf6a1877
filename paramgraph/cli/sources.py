"""Where ``paramgraph inspect`` gets a network from: an import path, a zoo, or a file of weights."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from paramgraph.cli.command import UsageError
from paramgraph.zoo import Zoo

__all__ = ["example_tensors", "import_network", "load_weights", "zoo_network"]


def import_network(path: str) -> nn.Module:
    """The network at ``module:attribute``: an instance, or a class or function without arguments.

    Modules in the current folder are found too. Importing a module runs it: name only your own.

    Raises:
        UsageError: The module or attribute does not exist, or is no network.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(
            f"expected module:attribute (as in my_networks:make_cnn), got {path!r}. A file of "
            "weights ends in .safetensors, .npz, .pt, .pth, .bin or .ckpt; a zoo is a folder."
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is missing inside theirs is their error, with its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"there is no module {error.name!r} in the current folder or the installed packages."
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not hasattr(module, attribute):
        raise UsageError(f"module {module_name!r} has no attribute {attribute!r}.")
    found = getattr(module, attribute)
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    if not isinstance(found, nn.Module):
        raise UsageError(f"{path} gives {type(found).__name__}, but expected a torch.nn.Module.")
    return found


def load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict into a network it fits exactly.

    Raises:
        UsageError: Entries are missing, additional or of another shape; the first is named.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    additional = [name for name in state if name not in own]
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if not (missing or additional or shapes):
        network.load_state_dict(state)
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
    raise UsageError(
        f"the weights in {source} do not fit {type(network).__name__}: {'; '.join(problems)}. "
        "They may be of another architecture."
    )


def zoo_network(zoo: Zoo, architecture: str | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """An architecture of a zoo and inputs for it.

    Raises:
        UsageError: The name is missing or unknown.
    """
    names = list(zoo.architectures)
    if architecture is None and len(names) == 1:
        architecture = names[0]
    if architecture not in zoo.architectures:
        asked = "name one with --architecture" if architecture is None else "choose another"
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UsageError(
            f"the zoo {zoo.path} has {len(names)} architectures and "
            f"{'none was chosen' if architecture is None else f'none is named {architecture!r}'}; "
            f"{asked}: {shown}."
        )
    spec = zoo.architectures[architecture]
    return spec.build(), spec.example_inputs()


def example_tensors(shapes: list[str]) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes: ``4x3x8x8``; ``4x12:int`` holds zeros and ones.

    Raises:
        UsageError: A text is not a shape.

    Example:
        >>> [tuple(x.shape) for x in example_tensors(["4x3", "4x12:int"])]
        [(4, 3), (4, 12)]
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for text in shapes:
        sizes, colon, kind = text.partition(":")
        parts = sizes.split("x")
        if not all(part.isdigit() and int(part) > 0 for part in parts) or kind not in ("", "int"):
            raise UsageError(
                f"--input-shape: expected numbers joined by x, as in 4x3x8x8 (4x12:int for whole "
                f"numbers), got {text!r}."
            )
        shape = [int(part) for part in parts]
        if colon:
            tensors.append(torch.randint(0, 2, shape, generator=generator))
        else:
            tensors.append(torch.randn(shape, generator=generator))
    return tuple(tensors)
