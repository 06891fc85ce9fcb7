"""Filling modules from files of named tensors, and writing those: torch's `.pth` / `.pt` / `.bin`, `.safetensors`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from aurora.adapters.initial_state import PREFIX as TUNED
from aurora.adapters.initial_state import start_from
from aurora.conversion.reading import PICKLED, SAFETENSORS, are_mapped, forget, open_tensors
from aurora.conversion.replacing import replacing
from aurora.conversion.writing import Output, write_pth, write_safetensors
from aurora.errors import AuroraError
from aurora.interfaces import Backbone

from .._families import looks_like

_LISTED = 8
_PART = 2**28


def read_tensors(path: str) -> dict[str, Tensor]:
    """The named tensors of a file, or of a folder with `model.safetensors` or shards, on the CPU, mapped rather than
    copied. AuroraError when it holds anything else."""
    return open_tensors(path)


def write_tensors(tensors: Mapping[str, Tensor], path: str) -> None:
    """Writes named tensors in the format that the file's ending asks for, whole or not at all."""
    file = Path(path)
    if file.suffix not in (SAFETENSORS, *PICKLED):
        raise AuroraError(f"{file} ends in {file.suffix!r}; weights are written as {SAFETENSORS}, {', '.join(PICKLED)}")
    outputs = {name: Output.of(tensor.detach().cpu()) for name, tensor in tensors.items()}
    with replacing(file, folder=False) as place:
        if file.suffix == SAFETENSORS:
            write_safetensors(place, outputs, {})
        else:
            write_pth(place, outputs)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies tensors into a module of the same keys and shapes, in the module's dtype; all or nothing. A backbone takes
    its tuned initial state along, where the tensors hold one.

    AuroraError that names what is missing, unexpected or of another shape.
    """
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(TUNED)}
    tuned = {name.removeprefix(TUNED): tensor for name, tensor in tensors.items() if name.startswith(TUNED)}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TUNED)}
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
                          f"{_advice(own, tensors)}")
    if any(tensor.is_meta for tensor in own.values()):
        raise AuroraError(f"{type(module).__name__} stands on the meta device; give it memory before reading {source}")
    if tuned:
        assert isinstance(module, Backbone)
        start_from(module, tuned)
    mapped = are_mapped(source)
    for part in _parts(tensors):
        module.load_state_dict(part, strict=False)  # all that may be missing is a tuned initial state
        if mapped:  # what was read is given back, so that reading takes little more memory than the module
            for tensor in part.values():
                forget(tensor)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in parts of little over _PART bytes."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part[name] = tensor
        if sum(tensor.nbytes for tensor in part.values()) >= _PART:
            yield part
            part = {}
    yield part


def _fault(kind: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    if not listed:
        return []
    more = f", … ({len(listed)} in all)" if len(listed) > _LISTED else ""
    return [f"{kind}: {', '.join(listed[:_LISTED])}{more}"]


def _advice(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    if 2 * len(own.keys() & tensors.keys()) >= len(own):
        return "Are its sizes those of this configuration?"
    family = looks_like(tensors)
    told = f"It looks like {family}; " if family else ""
    return f"{told}`aurora convert` rewrites other layouts of the same family"
