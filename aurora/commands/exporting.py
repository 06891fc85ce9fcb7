"""`aurora export`: a model as a folder to give away."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from aurora.commands.converting import bytes_shown, size_in_bytes
from aurora.commands.finding import random_model
from aurora.errors import AuroraError
from aurora.files import require_free
from aurora.training.restored import is_checkpoint, restored_model
from aurora.weights.export import export as run
from aurora.weights.model_folder import save_model


def export(options: Namespace) -> int:
    """Writes the folder."""
    target, shard_bytes = Path(options.target), size_in_bytes(options.shard_size)
    require_free(target, folder=True, force=options.force)
    with _model(options, target) as (folder, sources), bytes_shown("writing") as progress:
        run(folder, target, name=options.name, licence=options.license, dtype=options.dtype, results=options.results,
            sources=sources, force=options.force, shard_bytes=shard_bytes, progress=progress)
    sys.stdout.write(f"written to {target}\n")
    return 0


@contextmanager
def _model(options: Namespace, target: Path) -> Iterator[tuple[Path, Mapping[str, str] | None]]:
    """The model's folder, and with --from-parts its weights' sources. Of a checkpoint or of parts a folder is made,
    which is there for as long as it is needed."""
    if options.from_parts == (options.folder is not None):
        raise AuroraError("give either MODEL_FOLDER or --from-parts: aurora export MODEL_FOLDER TARGET")
    if options.folder is not None:
        if options.overrides:
            raise AuroraError(f"{options.overrides[0]!r} goes with --from-parts; a saved model is exported as it is")
        if Path(options.folder).exists() and target.resolve().is_relative_to(Path(options.folder).resolve()):
            raise AuroraError(f"{target} lies in the model that is exported; give another target")
        if not is_checkpoint(Path(options.folder)):
            yield Path(options.folder), None
            return
        sources, (model, config) = None, restored_model(Path(options.folder))
    else:
        model, config, sources = random_model(options.overrides, rounded=False)
    target.resolve().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".parts-", dir=target.resolve().parent) as scratch:
        save_model(model, config, Path(scratch, "model"))
        del model
        yield Path(scratch, "model"), sources
