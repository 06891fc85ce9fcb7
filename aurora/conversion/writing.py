"""Files of named tensors, written block by block: a `.safetensors` file, shards with an index, a `.pth` file.

No tensor is ever held twice, and of a tensor that is cast only a block is.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from aurora.conversion.reading import DTYPE_NAMES, INDEX_FILE, SINGLE_FILE, forget
from aurora.errors import AuroraError

BLOCK_BYTES = 2**22
_NAMES = {dtype: name for name, dtype in DTYPE_NAMES.items()}
_ORDER = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Types as the format's library sorts them, the last one first."""
_STORAGES = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_ALIGNMENT = 64  # of a tensor in a .pth file, as torch has it
_LARGE = 2**30  # bytes of a member of a zip archive from which on its 64 bit form is used; it must be below 2 GiB

Told = Callable[[int], None]
"""Is told how many bytes were written."""


class Output(NamedTuple):
    """A tensor to be written: what it is, and what gives it, piece after piece.

    `mapped` pieces are views of files, whose memory is given back as they are written.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]
    mapped: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def of(tensor: Tensor, dtype: torch.dtype | None = None) -> Output:
        """A tensor that is at hand."""
        return Output(tuple(tensor.shape), dtype or tensor.dtype, lambda: iter((tensor,)))


def write_safetensors(file: Path, outputs: Mapping[str, Output], metadata: Mapping[str, str],
                      told: Told = lambda written: None) -> None:
    """Writes one safetensors file, byte for byte as the format's own library does, and waits until it is on disk."""
    # the library's order: wide types first, so that every tensor is aligned
    order = sorted(outputs, key=lambda name: (-_rank(outputs[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + outputs[name].nbytes
        header[name] = {"dtype": _NAMES[outputs[name].dtype], "shape": list(outputs[name].shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            _write_data(opened, name, outputs[name], told)
        _to_disk(opened)


def write_shards(folder: Path, outputs: Mapping[str, Output], metadata: Mapping[str, str], told: Told,
                 shard_bytes: int) -> None:
    """Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` … and their index when that would be larger
    than `shard_bytes`."""
    shards = plan_shards({name: output.nbytes for name, output in outputs.items()}, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILE, outputs, metadata, told)
        return
    place: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(file, {name: outputs[name] for name in names}, metadata, told)
        place |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": sum(output.nbytes for output in outputs.values())},
             "weight_map": dict(sorted(place.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """The names in their order, cut into shards of at most `shard_bytes`; a larger tensor has one for itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_pth(file: Path, outputs: Mapping[str, Output], told: Told = lambda written: None) -> None:
    """Writes a `.pth` file as `torch.save` does for a dictionary of tensors, and waits until it is on disk."""
    odd = [f"{name} ({output.dtype})" for name, output in outputs.items() if output.dtype not in _STORAGES]
    if odd:
        raise AuroraError(f"a .pth file cannot hold {odd[0]}; .safetensors can")
    with file.open("wb") as opened:
        with zipfile.ZipFile(opened, "w", zipfile.ZIP_STORED) as archive:
            _member(archive, opened, "data.pkl", _pickled(outputs))
            _member(archive, opened, "byteorder", b"little")
            for number, (name, output) in enumerate(outputs.items()):
                with _begin(archive, opened, f"data/{number}", output.nbytes) as member:
                    _write_data(member, name, output, told)
            _member(archive, opened, "version", b"3\n")
        _to_disk(opened)


def _write_data(file: Any, name: str, output: Output, told: Told) -> None:
    written = 0
    for piece in output.pieces():
        for part in slices(piece):
            block = part.to(output.dtype).contiguous().view(-1)
            if output.dtype == torch.float16 and not torch.isfinite(block).all():
                raise AuroraError(f"{name} has values that float16 cannot hold; bfloat16 can")
            data = block.view(torch.uint8).numpy().data
            file.write(data)
            written += len(data)
            told(len(data))
            if output.mapped:
                forget(part)
    assert written == output.nbytes, name


def slices(tensor: Tensor) -> Iterator[Tensor]:
    """The values of a tensor in order, in views of about one block."""
    if tensor.is_contiguous():
        tensor = tensor.detach().view(-1)
    elements = math.prod(tensor.shape[1:])
    step = max(1, BLOCK_BYTES // max(1, elements * tensor.itemsize))
    for start in range(0, len(tensor), step):
        yield tensor[start : start + step]


def _rank(dtype: torch.dtype) -> int:
    return _ORDER.index(_NAMES[dtype])


def _member(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    with _begin(archive, file, name, len(data)) as member:
        member.write(data)


def _begin(archive: zipfile.ZipFile, file: BinaryIO, name: str, size: int) -> Any:
    """A member whose data will begin at a multiple of the alignment, so that it can be mapped."""
    large = size >= _LARGE
    info = zipfile.ZipInfo(f"archive/{name}")
    header = file.tell() + 30 + len(info.filename) + (20 if large else 0)
    # an extra field of its own kind: two bytes of name, two of length, then as much padding as is needed
    info.extra = b"FB" + struct.pack("<H", padding := -(header + 4) % _ALIGNMENT) + b"Z" * padding
    info.file_size = size
    return archive.open(info, "w", force_zip64=large)


class _Storage:
    """Where a tensor's data lies in the archive; pickled as torch pickles a storage."""

    def __init__(self, number: int, output: Output) -> None:
        self.id = ("storage", _STORAGES[output.dtype], str(number), "cpu", math.prod(output.shape))


class _Tensor:
    """Pickled as torch pickles a tensor."""

    def __init__(self, number: int, output: Output) -> None:
        self.storage, self.shape = _Storage(number, output), output.shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, _Storage) else None


def _pickled(outputs: Mapping[str, Output]) -> bytes:
    buffer = io.BytesIO()
    described = {name: _Tensor(number, output) for number, (name, output) in enumerate(outputs.items())}
    _Pickler(buffer, protocol=2).dump(described)
    return buffer.getvalue()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
