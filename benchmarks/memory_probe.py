"""Peak memory of one row, in a process of its own: ``python -m benchmarks.memory_probe JSON``.

The request names a row, the networks and the stage; the answer is one line of JSON. A step on a
few small networks comes first, so that what libraries allocate at first use counts for no row.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch

from benchmarks.measuring import peak_of
from benchmarks.speed_networks import make_networks
from benchmarks.speed_rows import make_subject

__all__ = ["main", "probe"]


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Measure one stage of one row.

    Args:
        request: ``row``, ``networks``, ``num`` and ``stage``; ``limit_gb`` ends the process where
            it would need more; ``num_threads`` is 1 when not given.

    Returns:
        Peak in MB, how it was measured, time of the step, and how many scalars the networks have.
    """
    torch.set_num_threads(int(request.get("num_threads", 1)))
    if "limit_gb" in request:
        limit = int(float(request["limit_gb"]) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    name = str(request["networks"])
    small = make_networks("large-8") if name.startswith("large") else make_networks(name, 8)
    make_subject(request["row"], small).stage(request["stage"])()
    networks = make_networks(name, int(request.get("num", 64)))
    step = make_subject(request["row"], networks).stage(request["stage"])
    cpu, wall = time.process_time(), time.perf_counter()
    peak = peak_of(step)
    return {
        "peak_mb": peak.mb,
        "how": peak.how,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "num_parameters": networks.num_parameters,
    }


def main() -> int:
    """Answer the request of the command line."""
    print(json.dumps(probe(json.loads(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
