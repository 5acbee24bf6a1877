"""Rules: what each ATen operation does to axes, one small function per family."""

from paramgraph.capture.axis_rules import (
    indexing,
    norms,
    orderings,
    pointwise,
    products,
    reductions,
    shapes,
    spatial,
    taking,
)
from paramgraph.capture.axis_rules.registry import RULES, apply_rule

__all__ = ["FAMILIES", "RULES", "apply_rule"]

FAMILIES = (shapes, taking, pointwise, products, reductions, norms, orderings, indexing, spatial)
"""The modules that register the rules, in reading order."""
