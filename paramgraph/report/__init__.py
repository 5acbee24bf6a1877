"""Report: the demonstration from end to end, its pictures and its one page of results.

Takes a folder and a seed. Gives zoos, trained metanetworks, ``metrics.json``, pictures and a
self-contained ``index.html``. Promises: a killed demonstration continues where it stopped, finished
parts are reused, and no number is written that was not measured. Does not do: new tasks or
metanetworks; these are the stages above. Beside it: ``graph_page`` and ``inspect_text``, what
``paramgraph inspect`` shows of a graph.
"""

from paramgraph.report.demo import DEMO_RUNS, DemoResult, run_demo
from paramgraph.report.environment import environment
from paramgraph.report.plain import to_json

__all__ = ["DEMO_RUNS", "DemoResult", "environment", "run_demo", "to_json"]
