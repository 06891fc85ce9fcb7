"""Filling modules from files of named tensors, and writing those: torch's `.pth` / `.pt` / `.bin`, `.safetensors`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from aurora.conversion.loading import load_parts
from aurora.conversion.reading import PICKLED, SAFETENSORS, are_mapped, open_tensors
from aurora.conversion.replacing import replacing
from aurora.conversion.writing import Output, write_pth, write_safetensors
from aurora.errors import AuroraError
from aurora.interfaces import INITIAL_STATE, Backbone

from .._families import looks_like

_LISTED = 8


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
    """Gives a module tensors of its keys and shapes, in its dtype; all or nothing. On the meta device it takes them as
    its own, else it copies them. A backbone takes its tuned initial state along, where the tensors hold one.

    AuroraError that names what is missing, unexpected or of another shape.
    """
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(INITIAL_STATE)}
    tuned = {name.removeprefix(INITIAL_STATE): tensor for name, tensor in tensors.items()
             if name.startswith(INITIAL_STATE)}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(INITIAL_STATE)}
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
    if tuned:
        assert isinstance(module, Backbone)
        module.start_from(tuned)
    load_parts(module, tensors, mapped=are_mapped(source))


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
