"""A conversion from one layout or file format to another, streamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from aurora.conversion.plan import Plan, plan
from aurora.conversion.reading import SAFETENSORS
from aurora.conversion.replacing import replacing, require_free, require_room
from aurora.conversion.report import Report
from aurora.conversion.source import CONFIG_JSON, find_family, open_source
from aurora.conversion.writing import Output, write_pth, write_safetensors, write_shards
from aurora.errors import AuroraError

SHARD_BYTES = 5 * 10**9
_OTHER_FORMATS = (".bin", ".pt", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
_SPARE_BYTES = 2**20

Told = Callable[[int, int], None]
"""Is told how many bytes of how many are written."""


def convert(
    source: Path, target: Path, *, slot: str, part: str, to: str | None = None, dtype: str | None = None,
    force: bool = False, shard_bytes: int = SHARD_BYTES, accept: Callable[[Report], None] = lambda report: None,
    told: Told = lambda done, all: None,
) -> Report:
    """Writes the weights of a part in another layout (`to`; by default the one that its `load_base` reads).

    `target` ends in .safetensors or .pth, or is a folder. `accept` sees the report before anything is written and may
    raise. AuroraError for whatever does not fit.
    """
    family = find_family(slot, part)
    folder = is_folder(target)
    require_free(target, folder=folder, force=force)
    planned = plan(open_source(source, family), target, family, to=to, dtype=dtype)
    accept(planned.report)
    write(planned, target, shard_bytes, told)
    return planned.report


def is_folder(target: Path) -> bool:
    """Whether a folder is to be written. AuroraError for a file of a format that is not written."""
    if target.suffix in _OTHER_FORMATS:
        raise AuroraError(f"{target} ends in {target.suffix!r}; a .safetensors file, a .pth file or a folder can be "
                          "written")
    return target.suffix not in (SAFETENSORS, ".pth")


def write(planned: Plan, target: Path, shard_bytes: int, told: Told) -> None:
    """Writes what is planned, whole or not at all."""
    if not planned.outputs:
        raise AuroraError(f"{planned.report.source} holds nothing that could be written")
    folder, all_bytes = is_folder(target), planned.report.bytes
    require_room(target, all_bytes + _SPARE_BYTES)
    done = 0

    def step(written: int) -> None:
        nonlocal done
        done += written
        told(done, all_bytes)

    with replacing(target, folder=folder) as place:
        if folder:
            write_shards(place, planned.outputs, {"format": "pt"}, step, shard_bytes)
            if planned.config is not None:
                text = json.dumps(planned.config, indent=2) + "\n"
                (place / CONFIG_JSON).write_text(text, encoding="utf-8")
        else:
            write_file(place, target.suffix, planned.outputs, step)


def write_file(place: Path, suffix: str, outputs: Mapping[str, Output], told: Callable[[int], None]) -> None:
    """Writes one file in the format of an ending."""
    if suffix == SAFETENSORS:
        write_safetensors(place, outputs, {"format": "pt"}, told)
    else:
        write_pth(place, outputs, told)
