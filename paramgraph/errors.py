"""Every exception that paramgraph raises on purpose, one class per stage.

All derive from :class:`ParamGraphError`, so ``except paramgraph.errors.ParamGraphError`` catches
whatever the library refuses to do. A message says what failed, which one, what was expected and
got, and what to do next.
"""

__all__ = [
    "BatchError",
    "CaptureError",
    "CheckpointError",
    "GraphError",
    "ParamGraphError",
    "ZooError",
]


class ParamGraphError(Exception):
    """Base class of all errors raised by paramgraph.

    Example:
        >>> issubclass(ZooError, ParamGraphError)
        True
    """


class CaptureError(ParamGraphError):
    """A network could not be read: an operation without a rule, or inputs it cannot run on."""


class GraphError(ParamGraphError):
    """A parameter graph is invalid, or parameter values do not fit the graph they are used with."""


class BatchError(ParamGraphError):
    """Graphs or values cannot be put together into one batch."""


class ZooError(ParamGraphError):
    """A zoo of networks cannot be built, opened or read."""


class CheckpointError(ParamGraphError):
    """A file of weights cannot be read safely, or cannot be written."""
