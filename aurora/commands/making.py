"""`aurora blocks`."""

from __future__ import annotations

import math
import sys
from argparse import Namespace

from aurora.errors import AuroraError
from aurora.registry import import_part


def blocks(options: Namespace) -> int:
    """Writes the embedded data set."""
    if not (options.scale > 0 and math.isfinite(options.scale)):
        raise AuroraError(f"--scale {options.scale} is no size; 1 is the full set, 0.1 a tenth")
    counts = import_part("datamodules.blocks.build").build(options.folder, seed=options.seed, scale=options.scale)
    for dataset, count in counts.items():
        sys.stdout.write(f"{options.folder}/{dataset}: {count}\n")
    return 0
