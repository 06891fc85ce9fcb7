"""Trains in several real processes that fork from one which has imported everything: run as a script.

    python together.py CASES.json      [{"config": {...}, "processes": 4, "stops_at": 2}, ...] one after the other

A case that stops before its last step leaves a checkpoint, from which a later one of the same run goes on. The strategy
fsdp1, which is for GPUs, is let run on CPUs: the one thing that is not as in `aurora train`.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path


def fork(work, processes):
    """Whether `work(rank)` ended without an exception in all of so many processes, which can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_start(work, rank, processes, port) for rank in range(processes)]
    return sum(os.waitpid(child, 0)[1] for child in children) == 0


def _start(work, rank, processes, port):
    child = os.fork()
    if child:
        return child
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GROUP_RANK="0")
    status = 1
    try:
        work(rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def train_case(case):
    from aurora.testing.training import MadeRows

    from aurora.errors import AuroraError
    from aurora.training import sharding
    
    
    MadeRows.stops_at = case.get("stops_at")
    try:
        train(case["config"])
    except AuroraError as error:
        if MadeRows.stops_at is None or "the data ended after step" not in str(error):
            raise


if __name__ == "__main__":
    from aurora.testing import training as tiny_training

    import aurora.training.run  # noqa: F401
    from aurora.registry import BACKBONE, CONNECTOR, VISION

    tiny_training.register()
    for slot, name in ((BACKBONE, "rwkv6"), (VISION, "siglip"), (CONNECTOR, "mlp")):
        slot.get(name)
    cases = json.loads(Path(sys.argv[1]).read_text())
    ended = [fork(lambda rank, case=case: train_case(case), case["processes"]) for case in cases]
    sys.exit(not all(ended))
