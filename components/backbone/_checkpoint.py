"""Reading and writing files of named tensors: torch's `.pth` / `.pt` / `.bin` and `.safetensors`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aurora.errors import AuroraError

_PICKLED = (".pth", ".pt", ".bin")
_LISTED = 8


def read_tensors(path: str) -> dict[str, Tensor]:
    """The named tensors of a file on the CPU, mapped rather than copied. AuroraError when it holds anything else."""
    file = Path(path)
    if not file.is_file():
        raise AuroraError(f"no weights at {file}: there is no such file")
    if file.suffix == ".safetensors":
        try:
            return dict(load_file(file))
        except SafetensorError as error:
            raise AuroraError(f"{file} is not a readable safetensors file: {error}") from error
    if file.suffix not in _PICKLED:
        raise AuroraError(f"{file} ends in {file.suffix!r}; weights are read from .safetensors, {', '.join(_PICKLED)}")
    return _unpickle(file)


def write_tensors(tensors: Mapping[str, Tensor], path: str) -> None:
    """Writes named tensors in the format that the file's ending asks for."""
    file = Path(path)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if file.suffix == ".safetensors":
        save_file(plain, file)
    elif file.suffix in _PICKLED:
        torch.save(plain, file)
    else:
        raise AuroraError(f"{file} ends in {file.suffix!r}; weights are written as .safetensors, {', '.join(_PICKLED)}")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies tensors into a module of the same keys and shapes, in the module's dtype; all or nothing.

    AuroraError that names what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    faults = [
        *_fault("missing", (name for name in own if name not in tensors)),
        *_fault("unexpected", (name for name in tensors if name not in own)),
        *_fault(
            "of another shape",
            (
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
                for name in own
                if name in tensors and tensors[name].shape != own[name].shape
            ),
        ),
    ]
    if faults:
        raise AuroraError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults)}. "
                          "Are its sizes those of this configuration?")
    if any(tensor.is_meta for tensor in own.values()):
        raise AuroraError(f"{type(module).__name__} stands on the meta device; give it memory before reading {source}")
    module.load_state_dict(tensors)


def _fault(kind: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    if not listed:
        return []
    more = f", … ({len(listed)} in all)" if len(listed) > _LISTED else ""
    return [f"{kind}: {', '.join(listed[:_LISTED])}{more}"]


def _unpickle(file: Path) -> dict[str, Tensor]:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise AuroraError(f"{file} is not read while TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: the file could run "
                          "anything; unset it, or convert the file to .safetensors")
    try:
        # files from before torch 1.6 are no zip archives and cannot be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AuroraError(f"{file} is not a readable file of weights: {reason}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise AuroraError(f"{file} holds no mapping of names to tensors")
    return tensors
