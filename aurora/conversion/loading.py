"""Named tensors into modules, taking little more memory than the module keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from aurora.conversion.reading import forget

_PART = 2**24


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
            _give_back(part.values(), mapped)
        return
    for name, tensor in tensors.items():
        for into, piece in zip(_rows(wanted[name]), _rows(tensor), strict=True):
            into.copy_(piece)
            _give_back([piece], mapped)


def _give_back(tensors: Iterable[Tensor], mapped: bool) -> None:
    if mapped:
        for tensor in tensors:
            forget(tensor)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in parts of little over _PART elements."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part[name] = tensor
        if sum(tensor.numel() for tensor in part.values()) >= _PART:
            yield part
            part = {}
    yield part


def _rows(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in parts of at most _PART elements, or single rows."""
    if tensor.numel() <= _PART:
        return [tensor]
    rows = max(1, _PART // tensor[0].numel())
    return [tensor[start:start + rows] for start in range(0, len(tensor), rows)]
