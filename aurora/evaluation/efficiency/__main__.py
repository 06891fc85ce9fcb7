"""A process that measures one point: reads a `Point` as JSON from standard input, writes what it found to standard
output. So every point has a peak of memory of its own, and one that does not fit ends alone."""

import json
import sys
from typing import Any

from aurora.errors import AuroraError
from aurora.evaluation.efficiency.live import measure_live
from aurora.evaluation.efficiency.point import BASELINES, Point, does_not_fit, limit_memory
from aurora.evaluation.efficiency.stages import read_along, read_whole


def main() -> int:
    """The exit status is 2 when the user has to change something."""
    point = Point(**json.load(sys.stdin))
    try:
        found = measure(point)
    except AuroraError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not does_not_fit(error):
            raise
        reason = "memory ran out before anything was read" if isinstance(error, ImportError) \
            else " ".join(str(error).split())[:300]
        found = {"fits": False, "reason": reason or "out of memory"}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def measure(point: Point) -> dict[str, Any]:
    """What the point costs. AuroraError for options that are wrong; MemoryError or torch's own where it does not fit.
    """
    limit_memory(point)
    if point.stream_seconds is not None:
        return measure_live(point)
    return read_whole(point) if point.series in BASELINES else read_along(point)


if __name__ == "__main__":
    sys.exit(main())
