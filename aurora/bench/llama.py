"""llama.cpp as a contestant, in a process of its own.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora.errors import AuroraError


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
        told = json.loads(line)
        if told["error"] is not None:
            raise AuroraError(told["error"])
        logits = self._process.stdout.read(4 * told["logits"])
        return torch.frombuffer(bytearray(logits), dtype=torch.float32) if logits else torch.empty(0)

    def _ended(self) -> AuroraError:
        return AuroraError(f"llama.cpp's process ended with status {self._process.wait()}")

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.communicate()


def quantize(source: Path, target: Path, *, threads: int) -> None:
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
