"""Random RWKV-6 weights of any size, in the authors' layout, on disk: what every contestant of a language bench reads.

Shape letters: D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.serialization import set_default_mmap_options, skip_data

from aurora.registry import BACKBONE
from tools.bench.machine import DTYPES


class Size(NamedTuple):
    """Of an RWKV-6."""

    hidden_size: int = 2048
    layers: int = 24
    vocab_size: int = 65536
    head_size: int = 64

    @property
    def config(self) -> dict[str, int | str]:
        """As the backbone's config says them; the vocabulary is the tokenizer's."""
        return {"name": "rwkv6", "hidden_size": self.hidden_size, "layers": self.layers, "head_size": self.head_size}

    def shapes(self) -> dict[str, torch.Size]:
        """Of every tensor of a checkpoint."""
        with torch.device("meta"):
            model = BACKBONE.build(self.config, vocab_size=self.vocab_size)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}


DAMPED = 0.3
"""The factor of what a branch adds, and of how mixtures and decays depend on the input. Without it, 24 random layers
turn the rounding of bfloat16 into 70 % of the logits, and nothing could be compared; so it becomes 2 %."""
_BRANCH_ENDS = ("att.output.weight", "ffn.value.weight", "_w1", "_w2")

FULL = Size()
QUICK = Size(hidden_size=128, layers=2, vocab_size=320)


def random_weights(folder: Path, size: Size, dtype: str) -> Path:
    """A `.pth` of random weights, made when the folder has none of these sizes yet."""
    path = folder / f"rwkv6-{size.hidden_size}x{size.layers}-{dtype}.pth"
    if not path.exists():
        write_random(path, size, DTYPES[dtype])
    return path


def write_random(path: Path, size: Size, dtype: torch.dtype) -> None:
    """Random weights in which every tensor matters and activations keep their size.

    The file is laid out first and then filled through the memory that maps it, so that one tensor is held at a time.
    """
    partial = path.with_suffix(".tmp")
    with skip_data():
        torch.save({name: torch.empty(shape, dtype=dtype) for name, shape in size.shapes().items()}, partial)
    with set_default_mmap_options(mmap.MAP_SHARED):
        stored: dict[str, Tensor] = torch.load(partial, mmap=True, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in stored.items():
        tensor.copy_(_random(name, tensor.shape, generator))
    del stored
    partial.rename(path)


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.2 * x + name.endswith("weight")  # norms: around one, and around zero
    if name.endswith("time_decay"):
        return 2 * x - 2
    if "time_maa" in name and len(shape) == 3:
        return 0.3 * x
    if len(shape) == 2 and "time_faaaa" not in name and "emb" not in name:
        # what goes in is the last side, or the first one of the pairs of low rank
        x = x / math.sqrt(shape[-1 if name.endswith("weight") else 0])
    return x * DAMPED if name.endswith(_BRANCH_ENDS) else x
