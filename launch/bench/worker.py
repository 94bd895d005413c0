"""The process of one contender: builds its job, times it, prints one line of JSON.

Started by `launch.bench.rounds`, with its order as JSON in the only argument.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import Any


def main() -> None:
    order = json.loads(sys.argv[1])
    # XLA sizes its pool of threads by the processors it may use, and knows no other limit.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["threads"]])
    print(json.dumps(run(order)))


def run(order: dict[str, Any]) -> dict[str, Any]:
    """order: workload, peer ("ours" or a name of PEERS), size ("auto" or of SIZES), device ("auto",
    "cpu" or "accelerator"), steps, threads."""
    from launch.bench import job
    from launch.bench.workloads import OURS, PEERS, WORKLOADS

    peer = OURS if order["peer"] == "ours" else PEERS[order["peer"]]
    missing = [name for name in peer.packages if importlib.util.find_spec(name) is None]
    if missing:
        return {"missing": missing}
    module = importlib.import_module(peer.module)
    device = module.device() if order["device"] == "auto" else order["device"]
    name = order["size"] if order["size"] != "auto" else device
    workload = WORKLOADS[order["workload"]]
    build = getattr(module, workload.kind)
    options = {"compiled": True} if peer.compiled else {}
    return job.measure(build(workload.sizes[name], device, **options), order["steps"]) | {
        "size": name
    }


if __name__ == "__main__":
    main()
