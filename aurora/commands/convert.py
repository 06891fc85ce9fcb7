import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from aurora.commands._options import refuse_override
from aurora.errors import AuroraError
from aurora.files import write_json

if TYPE_CHECKING:
    from aurora.weights.convert import Conversion

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size_in_bytes(text: str | int) -> int:
    """'5GB' → 5,000,000,000. AuroraError for what is not a size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text))
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise AuroraError(f"{text!r} is not a size; 5GB or 500MB is (units: {', '.join(filter(None, UNITS))})")
    return max(1, int(float(found[1]) * UNITS[found[2]]))


ShardSize: TypeAlias = Annotated[int, typer.Option(
    parser=size_in_bytes, metavar="SIZE", show_default=False, help="Of a folder's files, such as 500MB. Default: 5GB.")]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace a TARGET that is there.")]


def convert(
    *,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file or folder of weights.")],
    target: Annotated[Path, typer.Argument(
        metavar="TARGET", help="What to write: NAME.safetensors, NAME.pth or a folder.")],
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help=(
        "The weights are of this backbone: rwkv6 (layouts authors, fla, hf), rwkv7 (authors, fla), mamba2 "
        "(transformers, authors, aurora)."))] = None,
    vision: Annotated[str | None, typer.Option(metavar="NAME", help=(
        "The weights are of this vision encoder: siglip (transformers, transformers-bare, aurora)."))] = None,
    to: Annotated[str | None, typer.Option(metavar="LAYOUT", help=(
        "The layout to write. Default: the one that the part reads as base weights."))] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option(
        help="The dtype to write. Default: each tensor's own.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Write what is there.")] = False,
    allow_unexpected: Annotated[bool, typer.Option("--allow-unexpected", help="Leave out unknown names.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="What became of every name, as JSON.")] = None,
    shard_size: ShardSize = 5 * 10**9,
    force: Force = False,
) -> None:
    """Rewrite weights in another layout or format.

    Writes the weights of one part under other names, in another file format or dtype. SOURCE is a .pth or .safetensors
    file, a folder with model.safetensors or shards and their index, or a model folder of Aurora, of which the part is
    taken; its layout is recognised. TARGET is a .pth or .safetensors file, or a folder, which gets shards and a
    config.json where the layout has one. Weights are streamed: no more than the largest tensor is held in memory.

    Every name is accounted for. Nothing is written when names are missing or unexpected, unless that is allowed.

    \b
    example:
      aurora convert RWKV-x060-World-1B6.pth finch --backbone rwkv6 --to fla
      aurora convert finch finch.pth --backbone rwkv6
      aurora convert runs/demo/language_video/model tower --vision siglip
    """
    from aurora.terminal import BYTES, Waiting, progress_bar

    for path in (source, target):
        refuse_override(str(path))
    with Waiting("loading"):
        from aurora.weights.convert import convert as run
        from aurora.weights.loading import some

    slot, part = ("backbone", backbone) if vision is None else ("vision", vision)
    if part is None or (backbone and vision):
        raise AuroraError("give either --backbone NAME or --vision NAME: the part that the weights are of")
    if target.exists() and source.exists() and target.samefile(source):
        raise AuroraError(f"{target} is the source itself; give another target")

    def accept(found: "Conversion") -> None:
        if report is not None:
            write_json(report, found.report(source, target))
        _show(found)
        if found.missing and not allow_missing:
            raise AuroraError(f"{source} lacks {len(found.missing)} tensor(s): {some(found.missing)}; "
                              "--allow-missing writes what is there")
        if found.unexpected and not allow_unexpected:
            raise AuroraError(f"{source} holds {len(found.unexpected)} unexpected tensor(s): "
                              f"{some(found.unexpected)}; --allow-unexpected leaves them out")

    with progress_bar("writing", *BYTES) as tick:
        run(source, target, slot=slot, part=part, to=to, dtype=dtype, force=force, shard_bytes=shard_size,
            accept=accept, progress=tick)
    sys.stdout.write(f"written to {target}\n")


def _show(found: "Conversion") -> None:
    """The table, and what the config of a model with these weights says."""
    from aurora.terminal import stdout, table
    from aurora.weights.loading import some

    console = stdout()
    console.print(f"{found.part}: {found.source_layout} → {found.target_layout}", soft_wrap=True)
    shown = table("tensors", "number", "names", numbers=("number",))
    shown.add_row("written", f"{len(found.outputs):,}", f"{found.bytes:,} bytes")
    for kind, names in (("missing", found.missing), ("unexpected", found.unexpected), ("left out", found.left_out)):
        shown.add_row(kind, f"{len(names):,}", some(names))
    console.print(shown)
    slot, _, name = found.part.partition(" ")
    options = ", ".join(f"{key}: {value}" for key, value in found.options.items() if key != "vocab_size")
    console.print(f"in a config: {slot}: {{name: {name}, {options}}}", soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
