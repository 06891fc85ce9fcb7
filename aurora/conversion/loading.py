"""Named tensors into modules, taking little more memory than the module keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from aurora.conversion.reading import forget

_PART = 2**26


def load_parts(module: nn.Module, tensors: Mapping[str, Tensor], *, mapped: bool) -> None:
    """Gives a module tensors of its own names and shapes, in its dtypes: copied, or taken as its own where it stands on
    the meta device.

    Part by part, so that a module which rounds what it is given (`aurora.precision`) never holds much of it. Where the
    tensors are views of mapped files, the pages of each part are given back.
    """
    wanted = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    for part in _parts(tensors):
        given = {name: tensor.to(wanted[name].dtype) for name, tensor in part.items()} if on_meta else part
        module.load_state_dict(given, strict=False, assign=on_meta)
        if mapped:
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
