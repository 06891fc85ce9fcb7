"""A shuffle that is a pure function of a seed and a length: no generator, so no state, and the same on every device."""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ODD = 0x2C1B3C6D  # below 2³⁰, so that a product with a 32-bit word fits int64


def permutation(seed: int, length: int, device: torch.device) -> Tensor:
    """[length] int64: the numbers below `length` in an order that looks random."""
    word = torch.arange(length, device=device) + (seed * 0x9E3779B1 + length * 0x85EBCA6B & _WORD)
    for _ in range(3):
        word = ((word & _WORD) ^ ((word & _WORD) >> 15)) * _ODD
    return (word >> 7 & _WORD).argsort(stable=True)
