"""`aurora export`: a model as a folder to give away."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from aurora.commands.converting import bytes_shown, size_in_bytes
from aurora.conversion.export import export as run
from aurora.errors import AuroraError


def export(options: Namespace) -> int:
    """Writes the folder."""
    folder, target = Path(options.folder), Path(options.target)
    if folder.exists() and target.resolve().is_relative_to(folder.resolve()):
        raise AuroraError(f"{target} lies in the model that is exported; give another target")
    with bytes_shown("writing") as told:
        run(folder, target, name=options.name, licence=options.license, dtype=options.dtype, results=options.results,
            force=options.force, shard_bytes=size_in_bytes(options.shard_size), told=told)
    sys.stdout.write(f"written to {target}\n")
    return 0
