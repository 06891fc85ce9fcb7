"""Named tensors into modules and out of them, with errors that name what does not fit.

`load` and `save` are for parts that other packages bring: `from aurora import weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from aurora.errors import AuroraError
from aurora.files import replacing
from aurora.interfaces import INITIAL_STATE, Backbone
from aurora.weights.io import (
    PICKLED,
    SAFETENSORS,
    Output,
    are_mapped,
    open_tensors,
    release_pages,
    released,
    write_pth,
    write_safetensors,
)
from aurora.weights.layouts import looks_like

_PART_ELEMENTS = 2**24


def load(module: nn.Module, path: str) -> None:
    """Fills a module from a `.safetensors` or `.pth` file of its own names and shapes; all of it or nothing."""
    fill(module, open_tensors(path), path)


def save(module: nn.Module, path: str) -> None:
    """Writes what `load` reads: `.safetensors` or `.pth` by the ending of the path."""
    write_tensors(module.state_dict(), path)


def write_tensors(tensors: Mapping[str, Tensor], path: str) -> None:
    """Writes named tensors in the format that the file's ending asks for, whole or not at all."""
    file = Path(path)
    if file.suffix not in (SAFETENSORS, *PICKLED):
        raise AuroraError(f"{file} ends in {file.suffix!r}; weights are written as {SAFETENSORS}, {', '.join(PICKLED)}")
    outputs = {name: Output.of(tensor) for name, tensor in tensors.items()}
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
    faults = mismatches(own, tensors)
    if faults:
        raise AuroraError(f"{source} does not fit {type(module).__name__}: {faults}. {_advice(own, tensors)}")
    if tuned:
        assert isinstance(module, Backbone)
        module.start_from(tuned)
    load_parts(module, tensors, mapped=are_mapped(source))


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], listed: int = 8) -> str:
    """What is missing, unexpected or of another shape among given tensors, in words; empty when all fit."""
    reshaped = [f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
                for name, tensor in wanted.items() if name in given and given[name].shape != tensor.shape]
    faults = {"missing": [name for name in wanted if name not in given],
              "unexpected": [name for name in given if name not in wanted], "of another shape": reshaped}
    return "; ".join(f"{kind}: {some(names, listed)}" for kind, names in faults.items() if names)


def some(names: Sequence[str], listed: int = 8) -> str:
    """The first names, and how many there are where that is not all."""
    more = f", … ({len(names):,} in all)" if len(names) > listed else ""
    return ", ".join(names[:listed]) + more


def load_parts(module: nn.Module, tensors: Mapping[str, Tensor], *, mapped: bool) -> None:
    """Gives a module tensors of its own names and shapes, in its dtypes: copied, or taken as its own where it stands on
    the meta device.

    Part by part, so that a module which rounds what it is given (`Backbone.quantize`) never holds much of it. Where the
    tensors are views of mapped files, the pages of each part are given back.
    """
    wanted = module.state_dict()
    if any(tensor.is_meta for tensor in wanted.values()):
        for part in _parts(tensors):
            given = {name: tensor.to(wanted[name].dtype) for name, tensor in part.items()}
            module.load_state_dict(given, strict=False, assign=True)
            if mapped:
                for tensor in part.values():
                    release_pages(tensor)
        return
    for name, tensor in tensors.items():
        for into, piece in zip(_rows(wanted[name]), released(_rows(tensor), mapped), strict=True):
            into.copy_(piece)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in parts of little over _PART_ELEMENTS."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part[name] = tensor
        if sum(tensor.numel() for tensor in part.values()) >= _PART_ELEMENTS:
            yield part
            part = {}
    yield part


def _rows(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in parts of at most _PART_ELEMENTS, or single rows."""
    if tensor.numel() <= _PART_ELEMENTS:
        return [tensor]
    rows = max(1, _PART_ELEMENTS // tensor[0].numel())
    return [tensor[start:start + rows] for start in range(0, len(tensor), rows)]


def _advice(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    if 2 * len(own.keys() & tensors.keys()) >= len(own):
        return "Are its sizes those of this configuration?"
    family = looks_like(tensors)
    likeness = f"It looks like {family}; " if family else ""
    return f"{likeness}`aurora convert` rewrites other layouts of the same family"
