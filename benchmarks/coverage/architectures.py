"""All architectures of the report, in the order in which they are listed."""

from __future__ import annotations

from benchmarks.coverage import (
    hazards,
    pyg,
    transformers_multimodal,
    transformers_sound,
    transformers_sparse,
    transformers_text,
    transformers_vision,
)
from benchmarks.coverage.architecture import Architecture

__all__ = ["all_architectures"]


def all_architectures() -> dict[str, Architecture]:
    """Every architecture under its title, which stands once."""
    rows = [
        *hazards.architectures(),
        *pyg.ARCHITECTURES,
        *transformers_text.ARCHITECTURES,
        *transformers_sparse.ARCHITECTURES,
        *transformers_vision.ARCHITECTURES,
        *transformers_sound.ARCHITECTURES,
        *transformers_multimodal.ARCHITECTURES,
    ]
    titled = {row.title: row for row in rows}
    if len(titled) != len(rows):
        raise ValueError(f"{len(rows)} architectures have only {len(titled)} titles.")
    return titled
