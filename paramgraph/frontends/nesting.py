"""How an exported program nests its inputs and outputs: PyTorch's descriptions, read as data.

PyTorch's own reader imports the classes that a description names. This one builds tuples, lists
and dicts only; another container with named fields (an output of ``transformers``) becomes a dict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgraph.errors import CaptureError

__all__ = ["Nesting"]

_MAX_DEPTH = 50


@dataclass(frozen=True)
class Nesting:
    """One container or one leaf.

    Attributes:
        kind: ``leaf``, ``none``, ``tuple``, ``list`` or ``dict``.
        keys: Of a dict, in order.
        children: What is inside.

    Example:
        >>> leaf = {"type": None, "context": None, "children_spec": []}
        >>> pair = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf, leaf]}
        >>> nesting = Nesting.parse(pair)
        >>> list(nesting.flatten((1, 2))), nesting.build(iter([3, 4]))
        ([1, 2], (3, 4))
    """

    kind: str
    keys: tuple[Any, ...] = ()
    children: tuple[Nesting, ...] = ()

    @staticmethod
    def parse(spec: Mapping[str, Any], depth: int = 0) -> Nesting:
        """Read the description of PyTorch's protocol 1."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"containers are nested more than {_MAX_DEPTH} deep")
        if spec["type"] is None:
            return Nesting("leaf")
        name = spec["type"].rpartition(".")[2]
        children = tuple(Nesting.parse(child, depth + 1) for child in spec["children_spec"])
        context = spec["context"]
        if isinstance(context, str):
            try:
                context = json.loads(context)
            except ValueError:
                context = None
        if name in ("NoneType", "none"):
            return Nesting("none")
        if name in ("tuple", "list", "deque", "namedtuple"):
            return Nesting("list" if name == "list" else "tuple", (), children)
        if isinstance(context, list) and len(context) == len(children):
            return Nesting("dict", tuple(context), children)
        return Nesting("tuple", (), children)

    def flatten(self, value: Any, where: str = "inputs") -> Iterator[Any]:
        """The leaves of a value nested like this.

        Raises:
            CaptureError: The value is nested otherwise.
        """
        if self.kind == "leaf":
            yield value
        elif self.kind == "dict":
            if not isinstance(value, Mapping) or set(value) != set(self.keys):
                have = list(value) if isinstance(value, Mapping) else type(value).__name__
                raise CaptureError(
                    f"the exported program expects {where} with the keys {list(self.keys)}, got "
                    f"{have}. Give these, or export it with other example inputs."
                )
            for key, child in zip(self.keys, self.children, strict=True):
                yield from child.flatten(value[key], f"{where}[{key!r}]")
        elif self.kind != "none":
            if not isinstance(value, Sequence) or len(value) != len(self.children):
                count = len(value) if isinstance(value, Sequence) else type(value).__name__
                raise CaptureError(
                    f"the exported program expects {len(self.children)} {where}, got {count}. "
                    "Give these, or export it with other example inputs."
                )
            for place, (item, child) in enumerate(zip(value, self.children, strict=True)):
                yield from child.flatten(item, f"{where}[{place}]")

    def build(self, leaves: Iterator[Any]) -> Any:
        """Take as many leaves as this has, nested like this."""
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "none":
            return None
        values = [child.build(leaves) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, values, strict=True))
        return values if self.kind == "list" else tuple(values)
