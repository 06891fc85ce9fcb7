"""Named tensors into modules and out of them, with errors that name what does not fit.

`load` and `save` are for parts that other packages bring: `from aurora import weights`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
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
    plan_shards,
    release_pages,
    released,
    slices,
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
    own, _ = split_tuned(module.state_dict())
    tensors, tuned = split_tuned(tensors)
    tensors = unwrapped(tensors, lambda names: not own.keys().isdisjoint(names))
    faults = mismatches(own, tensors)
    if faults:
        like = looks_like(tensors)
        raise AuroraError(f"{source} does not fit {type(module).__name__}: {faults}. "
                          f"{f'It looks like {like}' if like else 'Are its sizes those of this configuration?'}")
    if tuned:
        assert isinstance(module, Backbone)
        module.start_from(tuned)
    load_parts(module, tensors, source=source, mapped=are_mapped(source))


def split_tuned(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a part, and its tuned initial state by the names of the states."""
    tuned = {name.rpartition(INITIAL_STATE)[2]: tensor for name, tensor in tensors.items() if INITIAL_STATE in name}
    return {name: tensor for name, tensor in tensors.items() if INITIAL_STATE not in name}, tuned


_WRAPPERS = re.compile(r"(?<![^.])_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module)\.")


def unwrapped(tensors: Mapping[str, Tensor], fits: Callable[[Collection[str]], object]) -> dict[str, Tensor]:
    """The tensors by the names that they have without what `torch.compile`, FSDP, DDP, Fabric or a LightningModule put
    before them: `_orig_mod.` anywhere, and what all names begin with, such as `module.` or `model.`, until they fit.
    As they are, where that leads to no names that fit."""
    names = {name: _WRAPPERS.sub("", name) for name in tensors}
    while not fits(names.values()):
        first = next(iter(names.values()), "").partition(".")[0] + "."
        if not names or not all(name.startswith(first) for name in names.values()):
            return dict(tensors)
        names = {name: short.removeprefix(first) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        return dict(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], listed: int = 8) -> str:
    """What is missing, unexpected, of another shape or type among given tensors, in words; empty when all fit."""
    typed = [f"{name} {given[name].dtype} instead of {tensor.dtype}" for name, tensor in wanted.items()
             if name in given and given[name].is_floating_point() != tensor.is_floating_point()]
    reshaped = [f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
                for name, tensor in wanted.items() if name in given and given[name].shape != tensor.shape]
    faults = {"missing": [name for name in wanted if name not in given],
              "unexpected": [name for name in given if name not in wanted], "of another shape": reshaped,
              "of another type": typed}
    return "; ".join(f"{kind}: {some(names, listed)}" for kind, names in faults.items() if names)


def some(names: Sequence[str], listed: int = 8) -> str:
    """The first names, and how many there are where that is not all."""
    more = f", … ({len(names):,} in all)" if len(names) > listed else ""
    return ", ".join(names[:listed]) + more


def load_parts(module: nn.Module, tensors: Mapping[str, Tensor], *, mapped: bool, source: str | Path | None = None
               ) -> None:
    """Gives a module tensors of its own names and shapes, in its dtypes: copied, or taken as its own where it stands on
    the meta device. With a `source`, which errors name, their values are looked at before.

    Part by part, so that a module which rounds what it is given (`Backbone.quantize`) never holds much of it. Where the
    tensors are views of mapped files, the pages of each part are given back.
    """
    wanted = module.state_dict()
    if any(tensor.is_meta for tensor in wanted.values()):
        for names in plan_shards({name: tensor.numel() for name, tensor in tensors.items()}, _PART_ELEMENTS):
            for name in names:
                if source is not None:
                    require_finite(source, name, tensors[name])
            given = {name: tensors[name].to(wanted[name].dtype) for name in names}
            module.load_state_dict(given, strict=False, assign=True)
            if mapped:
                for name in names:
                    release_pages(tensors[name])
        return
    for name, tensor in tensors.items():
        for into, piece in zip(_rows(wanted[name]), released(_rows(tensor), mapped), strict=True):
            into.copy_(piece)
            if source is not None:
                require_finite(source, name, into)


def require_finite(source: str | Path, name: str, tensor: Tensor, *, mapped: bool = False) -> None:
    """AuroraError for a tensor with values that are not numbers."""
    for block in released(slices(tensor), mapped) if tensor.is_floating_point() else ():
        # NaN is both; 20 times as fast as isfinite().all()
        least, most = torch.aminmax(block if block.itemsize > 1 else block.float())
        if not (least.isfinite() and most.isfinite()):
            raise AuroraError(f"{source}: {name} holds values that are not finite in {block.dtype} (NaN or infinity): "
                              "its training diverged, the file is damaged, or the dtype is too narrow")


def _rows(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in parts of at most _PART_ELEMENTS, or single rows."""
    if tensor.numel() <= _PART_ELEMENTS:
        return [tensor]
    rows = max(1, _PART_ELEMENTS // tensor[0].numel())
    return [tensor[start:start + rows] for start in range(0, len(tensor), rows)]
