"""One page that shows a graph: pan, zoom, search, details; it opens offline and loads nothing.

Takes a ``ParamGraph`` and its verification. Gives a page with everything inside. Promises: names
are shown, never run, and the same graph gives the same bytes. Does not draw single neurons or
weights (``report.graph_picture`` does).
"""

from paramgraph.report.graph_page.layout import Band, Box, Layout, lay_out
from paramgraph.report.graph_page.page import graph_page, write_graph_page

__all__ = ["Band", "Box", "Layout", "graph_page", "lay_out", "write_graph_page"]
