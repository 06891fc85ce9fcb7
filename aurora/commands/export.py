import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from aurora.commands._options import split_overrides
from aurora.commands.convert import Force, ShardSize
from aurora.errors import AuroraError


def export(
    *,
    words: Annotated[list[str], typer.Argument(metavar="MODEL_FOLDER|TARGET|OVERRIDE", help=(
        "MODEL_FOLDER TARGET: the folder as training writes it, RUN/STAGE/model, or a checkpoint of a stage that is "
        "still trained, RUN/STAGE/checkpoints/step-N, and the folder to write. With --from-parts TARGET and "
        "overrides."))],
    from_parts: Annotated[bool, typer.Option(
        "--from-parts", help="Instead of MODEL_FOLDER: a model of base weights.")] = False,
    name: Annotated[str | None, typer.Option(
        metavar="TEXT", help="Title of the model card. Default: the name of TARGET.")] = None,
    license: Annotated[str | None, typer.Option(
        metavar="ID", help="Of the model card, such as apache-2.0. Default: none.")] = None,
    results: Annotated[list[str], typer.Option(metavar="FILE", default_factory=list, show_default=False, help=(
        "A result.json of `aurora eval`, shown in the card. Those below MODEL_FOLDER/../eval that were measured on "
        "these weights always are. May be repeated."))],
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(
        help="The dtype to write. Default: the model's own.")] = None,
    shard_size: ShardSize = 5 * 10**9,
    force: Force = False,
) -> None:
    """Export a model as a folder for publishing.

    Writes weights in shards, config, tokenizer, prompt, and a model card with the parts, the stages the model was
    trained in and the results that were measured on it. `--model TARGET` takes it wherever a model folder is taken.

    With --from-parts there is no model yet: the one that a config describes is made of its base weights, the connector
    of random ones; overrides choose it as for `aurora train`.

    \b
    example:
      aurora export runs/demo/language_video/model exports/blocks \\
        --license apache-2.0
      aurora export --from-parts exports/untrained dtype=bfloat16 \\
        base_weights.vision.siglip=siglip-large-patch16-384 \\
        base_weights.backbone.rwkv6=RWKV-x060-World-1B6-v2.1-20240328-ctx4096.pth
    """
    from aurora.files import require_free
    from aurora.terminal import BYTES, Waiting, progress_bar

    with Waiting("loading"):
        from aurora.weights.export import export as run

    folders, overrides = split_overrides(words)
    if len(folders) != (1 if from_parts else 2):
        raise AuroraError(f"{' '.join(folders)}: give MODEL_FOLDER TARGET, or --from-parts TARGET")
    if overrides and not from_parts:
        raise AuroraError(f"{overrides[0]!r} goes with --from-parts; a saved model is exported as it is")
    target = Path(folders[-1])
    require_free(target, folder=True, force=force)
    saved = None if from_parts else Path(folders[0])
    with _model(saved, overrides, target) as (folder, sources), progress_bar("writing", *BYTES) as tick:
        run(folder, target, name=name, licence=license, dtype=dtype, results=results, sources=sources, force=force,
            shard_bytes=shard_size, progress=tick)
    sys.stdout.write(f"written to {target}\n")


@contextmanager
def _model(folder: Path | None, overrides: Sequence[str], target: Path
           ) -> Iterator[tuple[Path, Mapping[str, str] | None]]:
    """The model's folder and, of a model of base weights, their sources. Of a checkpoint or of base weights a folder is
    made, which is there for as long as it is needed."""
    from aurora.inference.models import random_model
    from aurora.training.stage import from_checkpoint, is_checkpoint
    from aurora.weights.model_folder import save_model

    if folder is None:
        model, config, sources = random_model(overrides, rounded=False)
    elif folder.exists() and target.resolve().is_relative_to(folder.resolve()):
        raise AuroraError(f"{target} lies in the model that is exported; give another target")
    elif is_checkpoint(folder):
        model, trained = from_checkpoint(folder)
        config, sources = trained.model, None
    else:
        yield folder, None
        return
    target.resolve().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".parts-", dir=target.resolve().parent) as scratch:
        save_model(model, config, Path(scratch, "model"))
        del model
        yield Path(scratch, "model"), sources
