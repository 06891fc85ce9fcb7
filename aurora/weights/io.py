"""Files of named tensors: `.safetensors`, `.pth`, folders of shards. Mapped when read, written block by block.

Nothing is read before it is used, and no pickle runs code. No tensor is copied as a whole, and of a tensor that is
cast only a block is. The libraries' own writers need every tensor at once: casting a file of 1 GB to bfloat16 adds
1.5 GB to the peak memory with safetensors' `save_file`, and 30 MB with `write_safetensors`.
"""

import ctypes
import io
import json
import math
import mmap
import os
import pickle
import re
import struct
import sys
import warnings
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
SINGLE_FILES = (SINGLE_FILE, "pytorch_model.bin")
INDEX_FILE = "model.safetensors.index.json"
BLOCK_BYTES = 2**22
_HEADER_BYTES = 100 * 10**6  # the size at which safetensors refuses a header
_PICKLE_BYTES = 2**23  # 200 bytes or so per tensor; of any pickle, torch makes objects of up to 60 times its size
_OTHER_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the weights",
    b"<": "a page of the web, so the download failed",
    b"GGUF": "a GGUF file, whose tensors are in a format of llama.cpp",
    b"PK": "a .pth file: rename it",
    b"\x80": "a pickle: rename it to .pth if torch.save wrote it",
    b"\x1f\x8b": "compressed by gzip: unpack it",
}
"""What files that are not weights begin with, and what they are."""
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
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
    """The tensors of a `.safetensors` or `.pth` file, or of a folder with `model.safetensors`, `pytorch_model.bin`, or
    shards of either and their index.

    They are views of the mapped files, on the CPU. AuroraError when there are none, or a file is broken.
    """
    path = Path(path)
    if not path.exists():
        raise AuroraError(f"no weights at {path}: there is no such file")
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        opened = _open_safetensors(file) if file.suffix == SAFETENSORS else _open_pickled(file)
        odd = next((name for name in opened if not name.isprintable()), None)
        if odd is not None:
            raise AuroraError(f"{file} has a tensor of the name {odd!r}, which is not that of any weight")
        twice = sorted(tensors.keys() & opened.keys())
        if twice:
            raise AuroraError(f"{path} holds {twice[0]} in two shards")
        tensors |= opened
    index = _index(path)
    lost = sorted(read_index(index).keys() - tensors.keys()) if index else []
    if lost:
        raise AuroraError(f"{index} names {lost[0]}, which none of its shards holds; they are of another model, or of "
                          "another version of it")
    return tensors


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder. AuroraError for a folder without weights or with shards missing."""
    if path.is_file():
        if path.suffix not in (SAFETENSORS, *PICKLED):
            raise AuroraError(f"{path} ends in {path.suffix!r}; weights are read from {SAFETENSORS}, "
                              f"{', '.join(PICKLED)}, or a folder that holds {SINGLE_FILE} or shards with their index")
        return [path]
    index = _index(path)
    if index is not None:
        return [path / name for name in sorted(set(read_index(index).values()))]
    for name in SINGLE_FILES:
        if (path / name).is_file():
            return [path / name]
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
    way = "; `aurora export` makes a model of a training checkpoint" if (path / "COMMITTED").is_file() else ""
    raise AuroraError(f"{path} holds no {SINGLE_FILE} and no {INDEX_FILE}, but {held}{way}")


def read_index(index: Path) -> dict[str, str]:
    """From the names of tensors to the files that hold them. AuroraError for a file that is not beside the index."""
    held = read_json(index).get("weight_map")
    if not isinstance(held, dict) or not held or not all(isinstance(name, str) for name in held.values()):
        raise AuroraError(f"{index} has no weight_map that gives the name of a file for each tensor")
    ending = Path(index.name.removesuffix(".index.json")).suffix
    names = sorted(set(held.values()))
    # a name that leads out of the folder would let an index read any file
    outside = [name for name in names if Path(name).name != name or Path(name).suffix != ending]
    if outside:
        raise AuroraError(f"{index} names {outside[0]!r}, which is not a {ending} file beside it")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise AuroraError(f"{index} names shards that are not there: {', '.join(absent[:4])}")
    return held


def read_metadata(file: Path) -> dict[str, str]:
    """The free texts in the header of a file that `open_tensors` takes; only safetensors has them."""
    if file.suffix != SAFETENSORS:
        return {}
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def are_mapped(path: str | Path) -> bool:
    """Whether all that `open_tensors` gives are views of mapped files: torch's format of before 1.6 cannot be."""
    return all(file.suffix == SAFETENSORS or zipfile.is_zipfile(file) for file in weight_files(Path(path)))


def release_pages(tensor: Tensor) -> None:
    """Gives the memory of a mapped tensor back: its whole pages are read from the file again if they are needed.

    Any other tensor would lose its values.
    """
    _advise(tensor, mmap.PAGESIZE, _MADV_DONTNEED)


def large_pages(tensor: Tensor) -> Tensor:
    """The tensor, which nothing was written into yet: its memory is to lie in pages of 2 MB, where Linux has them. Rows
    that are read here and there are found sooner then."""
    _advise(tensor, 2**21, _MADV_HUGEPAGE)
    return tensor


def _advise(tensor: Tensor, page: int, advice: int) -> None:
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if length > 0 and tensor.is_contiguous() and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def released(tensors: Iterable[Tensor], mapped: bool) -> Iterator[Tensor]:
    """The tensors one by one; of mapped ones the pages are given back when the next is asked for."""
    for tensor in tensors:
        yield tensor
        if mapped:
            release_pages(tensor)


def _index(path: Path) -> Path | None:
    return next((path / f"{name}.index.json" for name in SINGLE_FILES if (path / f"{name}.index.json").is_file()), None)


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise _broken(file, f"its header would end at byte {length + 8:,} of {size:,}; it may be truncated")
        header = opened.read(min(length, _HEADER_BYTES))
    try:
        with safe_open(file, framework="pt") as tensors:
            json.loads(header, object_pairs_hook=_once)  # after its library, which stops at the first wrong type
            return {name: tensors.get_tensor(name) for name in tensors.offset_keys()}
    except (SafetensorError, OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        raise _broken(file, f"{_reason(error)}; it may be truncated or damaged") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError for a name that stands in it twice: readers differ in which one they take."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"its header has {next(name for name in names if names.count(name) > 1)!r} twice")
    return dict(pairs)


def _open_pickled(file: Path) -> dict[str, Tensor]:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise AuroraError(f"{file} is not read while TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: the file could run "
                          "anything; unset it, or convert the file to .safetensors")
    try:
        mapped = zipfile.is_zipfile(file)
        sizes = _check_archive(file) if mapped else None
        with _BoundedFile(file) as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch may not know
            tensors = torch.load(file if mapped else opened, map_location="cpu", weights_only=True, mmap=mapped)
    except AuroraError:
        raise
    except pickle.UnpicklingError as error:
        raise _broken(file, f"it holds more than tensors ({_reason(error)}), and a pickle can run code when it is "
                            "opened; expected a file of weights alone: torch.save(model.state_dict(), PATH)"
                      ) from error
    except Exception as error:  # whatever torch trips over in a file that it did not write
        raise _broken(file, f"{_reason(error)}; it may be truncated or damaged") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        inside = f", but {', '.join(map(str, list(tensors)[:4]))}" if isinstance(tensors, dict) else ""
        raise AuroraError(f"{file} does not map names to tensors{inside}; expected a checkpoint of weights alone")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise AuroraError(f"{file} names a tensor {name!r}; names are texts")
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else tensor.layout
            raise AuroraError(f"{file}: {name} is a tensor of the kind {kind}; plain ones are read")
    if sizes is not None:
        _check_storages(file, tensors, sizes)
    return dict(tensors)


def _check_archive(file: Path) -> list[int]:
    """The sizes of the data in the order in which they lie in the file. AuroraError for an archive that torch does not
    write: it maps members without looking how they are stored."""
    sizes = []
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise _broken(file, "it is a program of TorchScript; save its state_dict() instead")
        for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                how = "encrypted" if member.flag_bits & 1 else "compressed"
                raise _broken(file, f"its member {member.filename} is {how}, and weights are mapped; torch.save "
                                    "stores them as they are")
            if member.filename.endswith("/data.pkl") and member.file_size > _PICKLE_BYTES:
                raise _broken(file, f"its {member.filename} has {member.file_size:,} bytes, and the names of tensors "
                                    f"take at most {_PICKLE_BYTES:,}")
            if "/data/" in member.filename and member.file_size:
                sizes.append(member.file_size)
    return sizes


def _check_storages(file: Path, tensors: Mapping[str, Tensor], sizes: list[int]) -> None:
    """AuroraError when tensors reach beyond their member of an archive: torch maps them over whatever lies there."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    held = [storages[start] for start in sorted(storages) if storages[start]]
    if held != sizes:
        raise _broken(file, f"its tensors take {sum(held):,} bytes in {len(held)} members, and it holds {sum(sizes):,} "
                            f"in {len(sizes)}")


class _BoundedFile(io.BufferedReader):
    """A file of which so much is read as names of tensors take; torch reads tensors past `read`, by the descriptor."""

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file))
        self.left = _PICKLE_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1)))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().readline(self.left + 1))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"its names of tensors take more than {_PICKLE_BYTES:,} bytes")
        return data


def _broken(file: Path, reason: str) -> AuroraError:
    """The error for a file of weights that cannot be read: what it is instead, or why it is not one."""
    with file.open("rb") as opened:
        start = opened.read(64)
    right = "safetensors file" if file.suffix == SAFETENSORS else "file of weights"
    found = next((what for mark, what in _OTHER_KINDS.items() if start.startswith(mark)), None)
    if start[8:9] == b"{":  # behind a length, which may begin with any byte
        found = None if file.suffix == SAFETENSORS else f"a safetensors file: rename it to {file.stem}{SAFETENSORS}"
    if found is None or (start.startswith((b"PK", b"\x80")) and file.suffix != SAFETENSORS):
        return AuroraError(f"{file} is not a readable {right}: {reason}")
    return AuroraError(f"{file} is not a readable {right}: it is {found}")


def _reason(error: Exception) -> str:
    text = str(error)
    words = text.partition("WeightsUnpickler error: ")[2] or text
    # torch's own words end in advice to trust the file
    words = re.split(r"\. This is an internal|was not an allowed|\.? ?[^.]*(?:weights_only|safe_globals)", words)[0]
    return words.strip().partition("\n")[0].strip(" .") or type(error).__name__


# ---- writing -----------------------------------------------------------------------------------------------------


class Output(NamedTuple):
    """A tensor to be written: its shape and type, and what gives its values, piece after piece.

    `mapped` pieces are views of files, whose memory is given back as they are written; `sources` are for reports.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]
    mapped: bool = False
    sources: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def of(tensor: Tensor, dtype: torch.dtype | None = None, *, mapped: bool = False) -> "Output":
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


def plan_shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """The names in their order, cut into shards of a size of at most `most`; a larger tensor has one for itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
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
