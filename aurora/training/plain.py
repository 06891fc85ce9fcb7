"""A callback's state as JSON: plain values and tensors, which come back exactly. No pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aurora.errors import AuroraError

TENSOR, TUPLE = "__tensor__", "__tuple__"
MOST_NUMBERS = 100_000  # of a tensor: more belong into a file of their own


def to_plain(where: str, value: Any) -> Any:
    """The value in what JSON knows. AuroraError names the place `where` something else stands."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.numel() <= MOST_NUMBERS and not value.is_complex():
        return {TENSOR: value.tolist(), "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, tuple):
        return {TUPLE: [to_plain(f"{where}[{index}]", item) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [to_plain(f"{where}[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_plain(f"{where}.{key}", item) for key, item in value.items()}
    raise AuroraError(f"{where} is {_described(value)}; a checkpoint takes numbers, text, lists, mappings with text as "
                      f"keys, and tensors of up to {MOST_NUMBERS:,} real numbers")


def from_plain(value: Any) -> Any:
    """What `to_plain` was given; tensors come back on the CPU."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return torch.tensor(value[TENSOR], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if TUPLE in value:
        return tuple(from_plain(item) for item in value[TUPLE])
    return {key: from_plain(item) for key, item in value.items()}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.numel():,} numbers of {value.dtype}"
    if isinstance(value, dict):
        return f"a mapping with keys such as {next(key for key in value if not isinstance(key, str))!r}"
    return f"a {type(value).__name__}"
