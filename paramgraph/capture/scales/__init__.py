"""Rescalings: which factors, signs and phase shifts of neurons keep the function of a network.

Every part of every parameter gets an unknown per axis group: the exponent with which it scales.
The tape is read once for positive factors and once for signs; each operation adds linear equations
(a product adds exponents, the terms of a sum have the same, relu passes positive factors on, tanh
signs). What the equations leave free are the scale groups.
"""

from paramgraph.capture.scales import (  # noqa: F401 - their rules register themselves
    indexing_rules,
    memory_rules,
    pointwise_rules,
    product_rules,
    reduction_rules,
    view_rules,
)
from paramgraph.capture.scales.registry import SCALE_RULES, scale_rule
from paramgraph.capture.scales.table import Scales, find_scales

__all__ = ["SCALE_RULES", "Scales", "find_scales", "scale_rule"]
