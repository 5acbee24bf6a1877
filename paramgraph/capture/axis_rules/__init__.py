"""Rules: what each ATen operation does to axes, one small function per family."""

import paramgraph.capture.axis_rules.indexing
import paramgraph.capture.axis_rules.pointwise
import paramgraph.capture.axis_rules.products
import paramgraph.capture.axis_rules.reductions
import paramgraph.capture.axis_rules.shapes  # noqa: F401  (each registers its rules)
from paramgraph.capture.axis_rules.registry import RULES, apply_rule

__all__ = ["RULES", "apply_rule"]
