"""Named tensors of a file or folder, mapped into memory: nothing is read before it is used, and no pickle runs code."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import pickle
import struct
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from aurora.errors import AuroraError

PICKLED = (".pth", ".pt", ".bin")
SAFETENSORS = ".safetensors"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPE_NAMES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Words of the safetensors format."""

_LONGEST_HEADER = 100 * 2**20  # of the safetensors format
_DROP = 4  # MADV_DONTNEED


def open_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file, or of a folder with `model.safetensors` or shards and an index.

    They are views of the mapped files. AuroraError when there is nothing of the kind, or it is broken.
    """
    path = Path(path)
    if not path.exists():
        raise AuroraError(f"no weights at {path}: there is no such file")
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        opened = _open_safetensors(file) if file.suffix == SAFETENSORS else _open_pickled(file)
        twice = sorted(tensors.keys() & opened.keys())
        if twice:
            raise AuroraError(f"{path} holds {twice[0]} in two shards")
        tensors |= opened
    return tensors


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder. AuroraError for a folder without weights or with shards missing."""
    if path.is_file():
        if path.suffix not in (SAFETENSORS, *PICKLED):
            raise AuroraError(f"{path} ends in {path.suffix!r}; weights are read from {SAFETENSORS}, "
                              f"{', '.join(PICKLED)}, or a folder that holds {SINGLE_FILE} or shards with their index")
        return [path]
    index = path / INDEX_FILE
    if index.is_file():
        return _shards(index)
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
    raise AuroraError(f"{path} holds no {SINGLE_FILE} and no {INDEX_FILE}, but {held}")


def read_metadata(file: Path) -> dict[str, str]:
    """The free texts in the header of a safetensors file."""
    return {str(key): str(text) for key, text in _header(file)[0].get("__metadata__", {}).items()}


def read_json(file: Path) -> dict[str, Any]:
    """A mapping from a JSON file. AuroraError when it is none."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AuroraError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(read, dict):
        raise AuroraError(f"{file} is no JSON object")
    return read


def are_mapped(path: str | Path) -> bool:
    """Whether all that `open_tensors` gives are views of mapped files."""
    return all(file.suffix == SAFETENSORS or is_zipfile(file) for file in weight_files(Path(path)))


def forget(tensor: Tensor) -> None:
    """Gives the memory of a mapped tensor back: its whole pages are read from the file again if they are needed.

    Any other tensor would lose its values.
    """
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if length > 0 and tensor.is_contiguous():
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _DROP)


def _libc() -> Any:
    return ctypes.CDLL(None)


def _shards(index: Path) -> list[Path]:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent or not names:
        raise AuroraError(f"{index} names shards that are not there: {', '.join(absent[:4]) or 'none at all'}")
    # a name that leads out of the folder would let an index read any file
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise AuroraError(f"{index} names {outside[0]!r}, which is not a file beside it")
    return [index.parent / name for name in names]


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    header, start = _header(file)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    size = file.stat().st_size
    try:
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if start + end > size:
            raise AuroraError(f"{file} is truncated: {size:,} bytes where its header speaks of {start + end:,}")
        with file.open("rb") as opened:
            # a private mapping may be written to, which torch asks of a buffer; the file stays as it is
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return {name: _view(mapped, start, entry) for name, entry in entries.items()}
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, AuroraError):
            raise
        raise AuroraError(f"{file} is not a readable safetensors file: {error}") from error


def _view(mapped: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = DTYPE_NAMES[entry["dtype"]], [int(size) for size in entry["shape"]]
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
        raise ValueError(f"a tensor of shape {shape} and type {entry['dtype']} lies in {end - begin} bytes")
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    data = torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=start + begin)
    return data.view(dtype).view(shape)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file holds, and where its data begins."""
    with file.open("rb") as opened:
        length = opened.read(8)
        number = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        text = opened.read(number) if 2 <= number <= _LONGEST_HEADER else b""
    if len(text) < max(2, number):
        raise AuroraError(f"{file} is not a readable safetensors file: it has no header; it may be truncated")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise AuroraError(f"{file} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise AuroraError(f"{file} is not a readable safetensors file: its header is no JSON object")
    return header, 8 + number


def _open_pickled(file: Path) -> dict[str, Tensor]:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise AuroraError(f"{file} is not read while TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: the file could run "
                          "anything; unset it, or convert the file to .safetensors")
    try:
        # files from before torch 1.6 are no zip archives and cannot be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except pickle.UnpicklingError as error:
        # torch's own words end in advice to trust the file
        found = _reason(error).partition(" was not an allowed")[0]
        raise AuroraError(f"{file} is not a readable file of weights: it holds more than tensors ({found}), and a "
                          "pickle can run code when it is opened") from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        raise AuroraError(f"{file} is not a readable file of weights ({_reason(error)}); it may be truncated"
                          ) from error
    return _named_tensors(file, tensors)


def _named_tensors(file: Path, tensors: Any) -> dict[str, Tensor]:
    if isinstance(tensors, dict) and all(isinstance(value, Tensor) for value in tensors.values()):
        return dict(tensors)
    inside = f", but {', '.join(map(str, list(tensors)[:4]))}" if isinstance(tensors, dict) else ""
    raise AuroraError(f"{file} holds no mapping of names to tensors{inside}; a checkpoint of weights alone is right")


def _reason(error: Exception) -> str:
    text = str(error)
    told = text.partition("WeightsUnpickler error: ")[2] or text
    return told.strip().partition("\n")[0] or type(error).__name__
