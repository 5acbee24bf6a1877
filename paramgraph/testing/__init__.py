"""Testing: the laws of graphs and of metanetworks, checked on networks of your own or on ours.

Takes a network (``check_graph``) or a metanetwork (``check_metanetwork``). Gives a report with one
row per law and network; only ``assert_metanetwork`` raises. Promises that a law that does not apply
is reported as such, never as passed. Needs no test framework.
"""

from paramgraph.testing.graph_laws import check_graph
from paramgraph.testing.hazards import ExampleNetwork, hazard_networks
from paramgraph.testing.metanetwork_laws import assert_metanetwork, check_metanetwork
from paramgraph.testing.report import LawReport, LawRow

__all__ = [
    "ExampleNetwork",
    "LawReport",
    "LawRow",
    "assert_metanetwork",
    "check_graph",
    "check_metanetwork",
    "hazard_networks",
]
