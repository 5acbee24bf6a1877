"""``python -m paramgraph`` is the same command as ``paramgraph``."""

from __future__ import annotations

import sys

from paramgraph.cli import main

if __name__ == "__main__":
    sys.exit(main())
