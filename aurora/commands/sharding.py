"""`aurora shards build` and `aurora shards index`."""

from __future__ import annotations

import sys
from argparse import Namespace

from aurora.registry import import_part


def index(options: Namespace) -> int:
    """Indexes folders of tars."""
    for folder in options.folder:
        found = import_part("datamodules._shards").write_index(folder)
        sys.stdout.write(f"{folder}: {len(found)} samples in {len(found.shards)} shards\n")
    return 0
