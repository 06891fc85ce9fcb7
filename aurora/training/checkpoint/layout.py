"""Training checkpoints on disk: a folder per step, written asynchronously (`io.py`), read by any number of processes.

    step-12/shard-00001-….safetensors   each rank's part of the tensors (torch distributed checkpoint, no pickle)
            state.json                  everything else: loops, callbacks, data position, fingerprint
            COMMITTED                   size and sha256 of every file, written last
    newest                              the name of the newest whole checkpoint of the folder, replaced atomically

A folder without COMMITTED is not a checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from aurora.errors import AuroraError

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
KEPT_CHECKPOINTS = 2  # by `aurora train`
CHECKPOINTS = "checkpoints"  # the folder of a stage
STATE, COMMITTED, NEWEST = "state.json", "COMMITTED", "newest"

Report = Callable[[str], None]
Tensors = dict[str, Tensor]
Files = dict[str, tuple[int, str]]  # name → bytes, sha256


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    path: Path
    state: dict[str, Any]  # of Lightning's checkpoint what is not in `state_dict`

    @property
    def step(self) -> int:
        """Optimizer steps before it."""
        return int(self.state["global_step"])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The names and whole shapes of its tensors."""
        found = HuggingFaceStorageReader(str(self.path)).read_metadata().state_dict_metadata
        return {name: tuple(item.size) for name, item in found.items() if isinstance(item, TensorStorageMetadata)}

    def load(self, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
        """Fills tensors in place, each rank with its own part of sharded ones. Collective with a `group`."""
        # not `load`, which warns without a group that it works alone
        _load_state_dict(dict(tensors), HuggingFaceStorageReader(str(self.path)), group, no_dist=group is None)


def refuse_unsafe_loading() -> None:
    """AuroraError when the environment makes torch run the code that a weight file may hold."""
    if os.environ.get(UNSAFE):
        raise AuroraError(f"{UNSAFE} is set: it makes torch execute code from checkpoint files. Unset it")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimizer steps."""
    return folder / f"step-{step}"


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint by its folder. AuroraError when it is not a whole one."""
    if not path.exists():
        raise AuroraError(f"there is no checkpoint {path}; with several nodes all must see the same folder as run=")
    if not is_committed(path):
        raise AuroraError(f"{path} is not a training checkpoint: it has no {COMMITTED}. A checkpoint is a folder such "
                          f"as RUN/STAGE/{CHECKPOINTS}/step-200, or what ModelCheckpoint writes")
    wrong = problem(path, verify=False)
    if wrong is not None:
        raise AuroraError(f"{path} is broken: {wrong}")
    return Checkpoint(path, from_json(json.loads((path / STATE).read_bytes()), path.parent))


def is_committed(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (path / COMMITTED).is_file()


def newest_checkpoint(folder: Path, report: Report, *, verify: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint, or None; broken ones are named through `report` and passed over.

    Without `verify` the weights are not read: on the ranks that follow the choice of the first. AuroraError when there
    were some and none is whole.
    """
    found = by_age(folder)
    last = max([_step(path) for path in found[:1]] + _pointed_at(folder), default=-1)
    if last >= 0 and (not found or _step(found[0]) < last):
        report(f"{checkpoint_path(folder, last)}, the newest, is missing or has no {COMMITTED}; trying the one before")
    for path in found:
        wrong = problem(path, verify=verify)
        if wrong is None:
            there = read_checkpoint(path)
            if there.step == _step(path):
                if there.step < last:
                    report(f"going back to {path.name}: {last - there.step} steps are lost and taken again")
                return there
            wrong = f"its state is that after step {there.step}"
        report(f"{path} is broken ({wrong}); trying the one before")
    if last >= 0:
        raise AuroraError(f"none of the checkpoints in {folder} can be read; restart=true begins the stage again")
    return None


def problem(path: Path, *, verify: bool = True) -> str | None:
    """What is wrong with a committed checkpoint; None when every file has its size, and the state or, with `verify`,
    every file its digest."""
    try:
        files: Files = {name: tuple(entry) for name, entry in json.loads((path / COMMITTED).read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{COMMITTED} cannot be read"
    try:
        if STATE not in files:
            return f"{COMMITTED} does not name {STATE}"
        for name, (size, _) in files.items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes, not {size}"
        require_written(digests(path, files if verify else [STATE]), files, path)
    except (OSError, ValueError, AuroraError) as error:
        return str(error)
    return None


def sweep(folder: Path) -> None:
    """Removes what a killed save has left. OSError when nothing can be written here."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / ".trial"
    trial.write_bytes(b"\0")
    trial.unlink()
    for path in folder.glob("step-*"):
        if path.is_dir() and not is_committed(path):
            shutil.rmtree(path, ignore_errors=True)


def digests(path: Path, names: Iterable[str]) -> Files:
    """Size and sha256 of files, several at a time."""
    names = list(names)
    with ThreadPoolExecutor(min(8, len(names) or 1)) as pool:
        return dict(zip(names, pool.map(_digest, [path / name for name in names]), strict=True))


def _digest(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
        return file.tell(), digest.hexdigest()


def require_written(found: Files, wanted: Files, path: Path) -> None:
    """AuroraError that names the first file in the folder `path` that is not what was written."""
    for name in found:
        if tuple(found[name]) != tuple(wanted[name]):
            raise AuroraError(f"{path / name} is not what was written")


def by_age(folder: Path) -> list[Path]:
    """Committed checkpoints, the newest first."""
    committed = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and is_committed(path)]
    return sorted(committed, key=_step, reverse=True)


def _pointed_at(folder: Path) -> list[int]:
    """The step of the checkpoint that was the newest when one was last written; none when nothing says so."""
    try:
        number = (folder / NEWEST).read_text(encoding="utf-8").removeprefix("step-")
    except (OSError, UnicodeDecodeError):
        return []
    return [int(number)] if number.isdecimal() else []


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


# ---- JSON ------------------------------------------------------------------------------------------------------

TENSOR, TUPLE, ITEMS, FOLDER = "__tensor__", "__tuple__", "__items__", "{folder}"
MAX_NUMBERS = 100_000  # of a tensor: more belong into a file of their own


def to_json(where: str, value: Any, folder: Path) -> Any:
    """The value as JSON, from which `from_json` makes it again; paths below `folder` are stored relative to it, so that
    a run may be moved. AuroraError names the place of anything that JSON cannot hold."""
    if isinstance(value, str):
        return value.replace(str(folder.absolute()), FOLDER, 1) if value.startswith(str(folder.absolute())) else value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Path):
        return to_json(where, str(value), folder)
    if isinstance(value, Tensor) and value.numel() <= MAX_NUMBERS and not value.is_complex():
        return {TENSOR: value.tolist(), "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, tuple):
        return {TUPLE: [to_json(f"{where}[{index}]", item, folder) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [to_json(f"{where}[{index}]", item, folder) for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {to_json(where, key, folder): to_json(f"{where}.{key}", item, folder) for key, item in value.items()}
    if isinstance(value, Mapping) and all(isinstance(key, int) for key in value):
        return {ITEMS: [[key, to_json(f"{where}.{key}", item, folder)] for key, item in value.items()]}
    raise AuroraError(f"{where} is {_described(value)}; a checkpoint takes numbers, text, lists, mappings with text or "
                      f"integers as keys, and tensors of up to {MAX_NUMBERS:,} real numbers")


def from_json(value: Any, folder: Path) -> Any:
    """What `to_json` was given, as it is in `folder`; tensors come back on the CPU."""
    if isinstance(value, str):
        return value.replace(FOLDER, str(folder.absolute()), 1) if value.startswith(FOLDER) else value
    if isinstance(value, list):
        return [from_json(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return torch.tensor(value[TENSOR], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if TUPLE in value:
        return tuple(from_json(item, folder) for item in value[TUPLE])
    if ITEMS in value:
        return {key: from_json(item, folder) for key, item in value[ITEMS]}
    return {from_json(key, folder): from_json(item, folder) for key, item in value.items()}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.numel():,} numbers of {value.dtype}"
    if isinstance(value, Mapping):
        return f"a mapping with keys such as {next(key for key in value if not isinstance(key, str))!r}"
    return f"a {type(value).__name__}"
