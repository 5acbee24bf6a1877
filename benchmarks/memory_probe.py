"""Peak memory of one row, in a process of its own: ``python -m benchmarks.memory_probe JSON``.

The request names a row, the networks and the stage; the answer is one line of JSON. A step on
small networks comes first, so that what libraries allocate at first use counts for no row.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.measuring import peak_of
from benchmarks.speed_networks import make_networks
from benchmarks.speed_rows import make_subject

__all__ = ["main", "probe"]


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Measure stages of one row.

    Args:
        request: ``row``, ``networks``, ``num`` and ``stages``; ``limit_gb`` ends the process where
            it would need more; ``num_threads`` is 1 when not given; ``repeats`` for a median of
            times, memory is that of the first run.

    Returns:
        How many scalars the networks have, and for each stage its peak in MB, how it was measured,
        and how long it took.
    """
    torch.set_num_threads(int(request.get("num_threads", 1)))
    if "limit_gb" in request:
        limit = int(float(request["limit_gb"]) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    name = str(request["networks"])
    small = make_networks("large-8") if name.startswith("large") else make_networks(name, 1)
    first = make_subject(request["row"], small)
    for stage in request["stages"]:
        first.stage(stage)()
    networks = make_networks(name, int(request.get("num", 64)))
    subject = make_subject(request["row"], networks)
    found: dict[str, Any] = {"num_parameters": networks.num_parameters}
    for stage in request["stages"]:
        cpu, wall = time.process_time(), time.perf_counter()
        peak = peak_of(subject.stage(stage))
        taken = [(time.process_time() - cpu, time.perf_counter() - wall)]
        while len(taken) < int(request.get("repeats", 1)) and sum(run[0] for run in taken) < 6:
            cpu, wall = time.process_time(), time.perf_counter()
            subject.stage(stage)()
            taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        found[stage] = {
            "peak_mb": peak.mb,
            "how": peak.how,
            "cpu_s": statistics.median(run[0] for run in taken),
            "wall_s": statistics.median(run[1] for run in taken),
        }
    return found


def main() -> int:
    """Answer the request of the command line."""
    print(json.dumps(probe(json.loads(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
