"""Language models that read ids: ours and its peers behind two functions.

Shape letters: S sequences, V vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.inference.steps import StepGraph
from aurora.interfaces import Backbone, Runner
from aurora.registry import BACKBONE
from aurora.types import State
from tools.bench.machine import DTYPES
from tools.bench.weights import Size


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
    """Our backbone; S sequences read the same tokens, by its modules alone unless `fused`."""

    def __init__(self, model: Backbone, *, sequences: int = 1, fused: bool = True) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.sequences = sequences
        self.runner = model.runner() if fused else Runner(model)
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


class Llama:
    """A GGUF model with the memory of one sequence."""

    def __init__(self, path: Path, *, threads: int, most_tokens: int, gpu: bool) -> None:
        options = {"path": str(path), "threads": threads, "most_tokens": most_tokens, "gpu": gpu}
        # by its path: what `-m` would import on the way is not needed there
        server = Path(__file__).with_name("llama_server.py")
        self._process = subprocess.Popen([sys.executable, str(server), json.dumps(options)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._answer()

    def forget(self) -> None:
        """The next token is the first one."""
        self._ask(forget=True)

    def read(self, tokens: Sequence[int]) -> Tensor:
        """The logits [V] after the last of these tokens, which continue those before."""
        return self._ask(tokens=list(tokens), each=False)

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """The same, read one by one."""
        return self._ask(tokens=list(tokens), each=True)

    def _ask(self, **request: Any) -> Tensor:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> Tensor:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        reported = json.loads(line)
        if reported["error"] is not None:
            raise AuroraError(reported["error"])
        logits = self._process.stdout.read(4 * reported["logits"])
        return torch.frombuffer(bytearray(logits), dtype=torch.float32) if logits else torch.empty(0)

    def _ended(self) -> AuroraError:
        return AuroraError(f"llama.cpp's process ended with status {self._process.wait()}")

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.communicate()


def quantize_gguf(source: Path, target: Path, *, threads: int) -> None:
    """A GGUF with its large matrices in q8_0, as llama.cpp's own tool makes it."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, threads
    # it reports every tensor on standard error, and what it calls back must live as long as it may do so
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))
    if status:
        raise AuroraError(f"llama.cpp could not quantize {source}")
