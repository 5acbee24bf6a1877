"""Testing: the laws of graphs and of metanetworks, checked on networks of your own or on ours.

Takes a network (``check_graph``) or a metanetwork of any level (``check_metanetwork``). Gives a
report with one row per law and network; only ``assert_metanetwork`` raises. Promises that a law
that does not apply is reported as such, never as passed. Needs no test framework.
"""

from paramgraph.testing.captured import CapturedNetworks, capture_networks
from paramgraph.testing.graph_laws import check_graph
from paramgraph.testing.hazards import ExampleNetwork, hazard_networks
from paramgraph.testing.metanetwork_laws import LAW_NAMES, assert_metanetwork, check_metanetwork
from paramgraph.testing.report import LawReport, LawRow

__all__ = [
    "LAW_NAMES",
    "CapturedNetworks",
    "ExampleNetwork",
    "LawReport",
    "LawRow",
    "assert_metanetwork",
    "capture_networks",
    "check_graph",
    "check_metanetwork",
    "hazard_networks",
]
