"""Architectures of zoo networks: frozen dataclasses that build ordinary PyTorch modules.

An architecture is data. It goes to JSON and back through a fixed table of two kinds, so opening a
zoo never imports or evaluates anything named in a file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from paramgraph.errors import ZooError
from paramgraph.zoo.cnn import CNN
from paramgraph.zoo.siren import Siren

__all__ = ["CNN", "Architecture", "Siren", "architecture_from_json", "architecture_to_json"]

Architecture = CNN | Siren
_KINDS: dict[str, type[CNN] | type[Siren]] = {"cnn": CNN, "siren": Siren}


def architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    """Turn an architecture into plain JSON data; the inverse of :func:`architecture_from_json`.

    Example:
        >>> architecture_to_json(Siren(widths=(4,)))["kind"]
        'siren'
    """
    fields = dataclasses.asdict(architecture)
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}
    return {"kind": architecture.kind, **plain}


def architecture_from_json(data: Mapping[str, Any]) -> Architecture:
    """Rebuild an architecture from the JSON data that :func:`architecture_to_json` made.

    Args:
        data: ``kind`` and every field of that kind.

    Returns:
        The architecture.

    Raises:
        ZooError: Unknown kind, or missing, additional or unsuitable fields.

    Example:
        >>> spec = Siren(widths=(4,))
        >>> architecture_from_json(architecture_to_json(spec)) == spec
        True
    """
    cls = _KINDS.get(str(data.get("kind")))
    if cls is None:
        raise ZooError(
            f"unknown architecture kind {data.get('kind')!r}; this version knows "
            f"{', '.join(sorted(_KINDS))}. A newer paramgraph may have written this zoo."
        )
    expected = {field.name for field in dataclasses.fields(cls)}
    got = set(data) - {"kind"}
    if got != expected:
        raise ZooError(
            f"architecture of kind '{cls.kind}': expected the fields {sorted(expected)}; "
            f"missing {sorted(expected - got)}, additional {sorted(got - expected)}."
        )
    fields = {key: data[key] for key in expected}
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()
    }
    return cls(**values)
