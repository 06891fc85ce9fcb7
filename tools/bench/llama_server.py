"""llama.cpp reading ids in a process of its own, through the C functions that `llama-cpp-python` brings.

It cannot share one with torch: on a processor with a tile unit each of them configures it once per thread and believes
that it stays so. This file imports neither torch nor the frame, so that its process holds llama.cpp alone.

Requests are lines of JSON on standard input: {"forget": true}, or {"tokens": [ids], "each": whether one by one}. Every
answer is a line of JSON, {"error": ... or null, "logits": number}, followed by that many float32 numbers.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from typing import Any

import llama_cpp


class Model:
    """A GGUF model with the memory of one sequence."""

    def __init__(self, path: str, *, threads: int, most_tokens: int, gpu: bool) -> None:
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 999 if gpu else 0
        model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not model:
            raise RuntimeError(f"llama.cpp cannot read {path}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = most_tokens
        context.n_threads = context.n_threads_batch = threads
        self.context: Any = llama_cpp.llama_init_from_model(model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make room for {most_tokens} tokens of {path}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def forget(self) -> None:
        """The next token is the first one."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def read(self, tokens: Sequence[int]) -> bytes:
        """The logits after the last of these tokens, which continue those before."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, len(tokens)))
        if status:
            raise RuntimeError(f"llama.cpp failed on {len(tokens)} tokens with status {status}")
        return ctypes.string_at(llama_cpp.llama_get_logits_ith(self.context, -1), 4 * self.vocab)


def answer(model: Model, request: dict[str, Any]) -> bytes:
    """The logits that a request asks for, or none."""
    if "forget" in request:
        model.forget()
        return b""
    if not request["each"]:
        return model.read(request["tokens"])
    for token in request["tokens"]:
        logits = model.read([token])
    return logits


def reply(error: str | None, logits: bytes = b"") -> None:
    """One answer."""
    out = sys.stdout.buffer
    out.write(json.dumps({"error": error, "logits": len(logits) // 4}).encode() + b"\n" + logits)
    out.flush()


def main() -> None:
    """Opens the model that the argument describes as JSON, says so, and serves until standard input ends."""
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    try:
        model = Model(**json.loads(sys.argv[1]))
        reply(None)
        for line in sys.stdin:
            reply(None, answer(model, json.loads(line)))
    except RuntimeError as error:
        reply(str(error))


if __name__ == "__main__":
    main()
