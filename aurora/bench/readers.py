"""Language models that read ids: ours and its peers behind two functions.

Shape letters: S sequences, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aurora.bench.ceilings import DTYPES
from aurora.bench.weights import Size
from aurora.inference.steps import StepGraph
from aurora.interfaces import Backbone
from aurora.registry import BACKBONE
from aurora.types import State


class Reader(Protocol):
    """A language model with the memory of what it has read."""

    def forget(self) -> None:
        """The next token is the first one."""

    def read(self, tokens: Sequence[int]) -> Tensor:
        """The logits [V] after the last of these tokens, which continue those before."""

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """The same, read one by one as when they are generated."""


def load_backbone(path: Path, size: Size, dtype: str, device: str) -> Backbone:
    """Our RWKV-6 with the weights of a `.pth`, for inference; int8 is that of the matrices, beside bfloat16."""
    with torch.device("meta"):
        model = BACKBONE.build(size.config, vocab_size=size.vocab_size)
    model = model.to(DTYPES["bfloat16" if dtype == "int8" else dtype])
    if dtype == "int8":
        model.quantize("int8")
    else:
        model = model.to_empty(device=device)
    model.load_base(str(path))
    return model.to(device).eval().requires_grad_(False)


class Aurora:
    """Our backbone; S sequences read the same tokens."""

    def __init__(self, model: Backbone, *, sequences: int = 1) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.sequences = sequences
        self.runner = model.runner()
        self.state: State = model.init_state(sequences)

    def forget(self) -> None:
        self.state = self.model.init_state(self.sequences)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> Tensor:
        ids, bounds = torch.tensor(tokens, device=self.device), torch.arange(self.sequences + 1) * len(tokens)
        hidden, self.state = self.runner.prefill(self.model.embed(ids.repeat(self.sequences)), bounds, self.state)
        return self.model.logits(hidden)[0]

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Tensor:
        for token in tokens:
            ids = torch.full((self.sequences,), token, device=self.device)
            hidden, self.state = self.runner.step(self.model.embed(ids), self.state)
            logits = self.model.logits(hidden)
        return logits[0]


class AuroraGraph(Aurora):
    """The same on CUDA, where generation replays every step from one graph."""

    def __init__(self, model: Backbone, *, sequences: int = 1) -> None:
        super().__init__(model, sequences=sequences)
        with torch.inference_mode():
            self._graph = StepGraph(model, sequences)

    @torch.inference_mode()
    def forget(self) -> None:
        super().forget()
        self._graph.load(self.state)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> Tensor:
        logits = super().read(tokens)
        self._graph.load(self.state)
        return logits

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Tensor:
        for token in tokens:
            _, logits = self._graph.read(torch.full((self.sequences,), token, device=self.device))
        return logits[0].clone()  # the next step overwrites it


class Authors:
    """The `rwkv` package."""

    def __init__(self, path: Path, dtype: str, device: str) -> None:
        # read when the package is imported, the second one whenever it runs; its scripted form is slower on a CPU
        os.environ["RWKV_JIT_ON"] = os.environ["RWKV_CUDA_ON"] = "0"
        os.environ.pop("RWKV_V7_ON", None)
        from rwkv.model import RWKV

        strategy = f"{device} {'bf16' if dtype == 'bfloat16' else 'fp32'}"
        self.model: Any = RWKV(model=str(path.with_suffix("")), strategy=strategy, verbose=False)
        self.state: Any = None

    def forget(self) -> None:
        self.state = None

    def read(self, tokens: Sequence[int]) -> Tensor:
        logits, self.state = self.model.forward(list(tokens), self.state)
        return logits  # type: ignore[no-any-return]

    def decode(self, tokens: Sequence[int]) -> Tensor:
        return [self.read([token]) for token in tokens][-1]
