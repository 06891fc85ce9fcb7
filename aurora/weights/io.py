"""Files of named tensors: `.safetensors`, `.pth`, folders of shards. Mapped when read, written block by block.

Nothing is read before it is used, and no pickle runs code. No tensor is copied as a whole, and of a tensor that is
cast only a block is. The libraries' own writers need every tensor at once: casting a file of 1 GB to bfloat16 adds
1.5 GB to the peak memory with safetensors' `save_file`, and 30 MB with `write_safetensors`.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import skip_data

from aurora.errors import AuroraError
from aurora.files import read_json, write_json

PICKLED = (".pth", ".pt", ".bin")
SAFETENSORS = ".safetensors"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BLOCK_BYTES = 2**22
_DATA_PICKLE_BYTES = 100 * 2**20  # the size at which safetensors refuses a header
_MADV_DONTNEED = 4
_TYPE_NAMES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}
"""Types by their names in safetensors, in the order in which its library writes tensors."""
_TYPE_ORDER = list(_TYPE_NAMES)

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were just written."""


# ---- reading -----------------------------------------------------------------------------------------------------


def open_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file, or of a folder with `model.safetensors` or shards and an index.

    They are views of the mapped files, on the CPU. AuroraError when there are none, or a file is broken.
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
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _broken_safetensors(file, error) from error


def are_mapped(path: str | Path) -> bool:
    """Whether all that `open_tensors` gives are views of mapped files: torch's format of before 1.6 cannot be."""
    return all(file.suffix == SAFETENSORS or zipfile.is_zipfile(file) for file in weight_files(Path(path)))


def release_pages(tensor: Tensor) -> None:
    """Gives the memory of a mapped tensor back: its whole pages are read from the file again if they are needed.

    Any other tensor would lose its values.
    """
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if length > 0 and tensor.is_contiguous():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_DONTNEED)


def released(tensors: Iterable[Tensor], mapped: bool) -> Iterator[Tensor]:
    """The tensors one by one; of mapped ones the pages are given back when the next is asked for."""
    for tensor in tensors:
        yield tensor
        if mapped:
            release_pages(tensor)


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
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.offset_keys()}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise _broken_safetensors(file, error) from error


def _broken_safetensors(file: Path, error: Exception) -> AuroraError:
    return AuroraError(f"{file} is not a readable safetensors file ({_reason(error)}); it may be truncated")


def _open_pickled(file: Path) -> dict[str, Tensor]:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise AuroraError(f"{file} is not read while TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: the file could run "
                          "anything; unset it, or convert the file to .safetensors")
    mapped = zipfile.is_zipfile(file)
    try:
        if mapped:
            _check_archive(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch's own words end in advice to trust the file
        found = _reason(error).partition(" was not an allowed")[0]
        raise AuroraError(f"{file} is not a readable file of weights: it holds more than tensors ({found}), and a "
                          "pickle can run code when it is opened") from error
    except AuroraError:
        raise
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
        raise AuroraError(f"{file} is not a readable file of weights ({_reason(error)}); it may be truncated"
                          ) from error
    if isinstance(tensors, dict) and all(isinstance(value, Tensor) for value in tensors.values()):
        return dict(tensors)
    inside = f", but {', '.join(map(str, list(tensors)[:4]))}" if isinstance(tensors, dict) else ""
    raise AuroraError(f"{file} does not map names to tensors{inside}; a checkpoint of weights alone is right")


def _check_archive(file: Path) -> None:
    """AuroraError for an archive that torch does not write: it maps members without looking how they are stored."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise AuroraError(f"{file} is not a readable file of weights: its member {member.filename} is "
                                  "compressed, and weights are mapped; torch.save stores them uncompressed")
            if member.filename.endswith("/data.pkl") and member.file_size > _DATA_PICKLE_BYTES:
                raise AuroraError(f"{file} is not a readable file of weights: its {member.filename} has "
                                  f"{member.file_size:,} bytes, and the names of tensors take at most "
                                  f"{_DATA_PICKLE_BYTES:,}")


def _reason(error: Exception) -> str:
    text = str(error)
    words = text.partition("WeightsUnpickler error: ")[2] or text
    return words.strip().partition("\n")[0] or type(error).__name__


# ---- writing -----------------------------------------------------------------------------------------------------


class Output(NamedTuple):
    """A tensor to be written: its shape and type, and what gives its values, piece after piece.

    `mapped` pieces are views of files, whose memory is given back as they are written. `sources` names what the
    tensor is made of, for reports.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]
    mapped: bool = False
    sources: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def of(tensor: Tensor, dtype: torch.dtype | None = None, *, mapped: bool = False) -> Output:
        """A tensor that is at hand, on any device."""
        return Output(tuple(tensor.shape), dtype or tensor.dtype, lambda: iter((tensor.detach(),)), mapped)


def write_safetensors(file: Path, outputs: Mapping[str, Output], metadata: Mapping[str, str],
                      on_bytes: OnBytes = lambda count: None) -> None:
    """Writes one safetensors file, byte for byte as the format's own library does."""
    odd = [f"{name} ({output.dtype})" for name, output in outputs.items() if output.dtype not in _TYPE_NAMES]
    if odd:
        raise AuroraError(f"a safetensors file cannot hold {odd[0]}; .pth can")
    order = sorted(outputs, key=lambda name: (_TYPE_ORDER.index(outputs[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + outputs[name].nbytes
        header[name] = {"dtype": _TYPE_NAMES[outputs[name].dtype], "shape": list(outputs[name].shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            opened.writelines(_blocks(name, outputs[name], on_bytes))


def write_shards(folder: Path, outputs: Mapping[str, Output], metadata: Mapping[str, str], shard_bytes: int,
                 on_bytes: OnBytes = lambda count: None) -> None:
    """Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` … and their index when that would be larger
    than `shard_bytes`."""
    shards = plan_shards({name: output.nbytes for name, output in outputs.items()}, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILE, outputs, metadata, on_bytes)
        return
    place: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(file, {name: outputs[name] for name in names}, metadata, on_bytes)
        place |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": sum(output.nbytes for output in outputs.values())},
             "weight_map": dict(sorted(place.items()))}
    write_json(folder / INDEX_FILE, index)


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


def write_pth(file: Path, outputs: Mapping[str, Output], on_bytes: OnBytes = lambda count: None) -> None:
    """Writes a `.pth` file: `torch.save` leaves room for the data, which is filled in with its checksums."""
    with skip_data():
        # memory that is never touched takes none
        torch.save({name: torch.empty(output.shape, dtype=output.dtype) for name, output in outputs.items()}, file)
    with zipfile.ZipFile(file, "a") as archive, file.open("r+b") as opened:
        data = {member.filename.partition("/data/")[2]: member for member in archive.infolist()}
        for number, (name, output) in enumerate(outputs.items()):
            member = data[str(number)]
            opened.seek(member.header_offset + 26)
            # the lengths of the name and of the padding, which the data begins behind
            opened.seek(sum(struct.unpack("<HH", opened.read(4))), os.SEEK_CUR)
            for block in _blocks(name, output, on_bytes):
                opened.write(block)
                member.CRC = zlib.crc32(block, member.CRC)
        archive.comment = b""  # makes closing write the table of members again


def _blocks(name: str, output: Output, on_bytes: OnBytes) -> Iterator[memoryview]:
    """The bytes of a tensor, in blocks."""
    written = 0
    for piece in output.pieces():
        for part in released(slices(piece), output.mapped):
            block = part.to("cpu", output.dtype).contiguous().view(-1)
            if output.dtype == torch.float16 and not torch.isfinite(block).all():
                raise AuroraError(f"{name} has values that float16 cannot hold; bfloat16 can")
            data: memoryview = block.view(torch.uint8).numpy().data
            yield data
            written += len(data)
            on_bytes(len(data))
    assert written == output.nbytes, name


def slices(tensor: Tensor) -> Iterator[Tensor]:
    """The values of a tensor in order, in views of about one block."""
    if tensor.is_contiguous():
        tensor = tensor.detach().view(-1)
    elements = math.prod(tensor.shape[1:])
    step = max(1, BLOCK_BYTES // max(1, elements * tensor.itemsize))
    for start in range(0, len(tensor), step):
        yield tensor[start : start + step]
