"""llama.cpp as a contestant, through the C functions that `llama-cpp-python` brings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aurora.errors import AuroraError


@cache
def api() -> Any:
    """The functions, told to keep quiet."""
    import llama_cpp

    llama_cpp.llama_log_set(_quiet(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _quiet() -> Any:
    """What llama.cpp calls with its messages; remembered, because it must live as long as that may happen."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def quantize(source: Path, target: Path, *, threads: int) -> None:
    """A GGUF with its large matrices in q8_0, as llama.cpp's own tool makes it."""
    options = api().llama_model_quantize_default_params()
    options.ftype, options.nthread = api().LLAMA_FTYPE_MOSTLY_Q8_0, threads
    if api().llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise AuroraError(f"llama.cpp could not quantize {source}")


class Llama:
    """A GGUF model with the memory of one sequence."""

    def __init__(self, path: Path, *, threads: int, most_tokens: int, gpu: bool) -> None:
        llama_cpp = self._api = api()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 999 if gpu else 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise AuroraError(f"llama.cpp cannot read {path}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = most_tokens
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise AuroraError(f"llama.cpp cannot make room for {most_tokens} tokens of {path}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def forget(self) -> None:
        """The next token is the first one."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def read(self, tokens: Sequence[int]) -> Tensor:
        """The logits [V] after the last of these tokens, which continue those before."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(tokens)))
        if status:
            raise AuroraError(f"llama.cpp failed on {len(tokens)} tokens with status {status}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(logits, shape=(self._vocab,)).copy())

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._api.llama_free(self._context)
        if getattr(self, "_model", None):
            self._api.llama_model_free(self._model)
