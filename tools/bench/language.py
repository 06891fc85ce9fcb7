"""The benches `prefill` and `decode`: RWKV-6 1.6B with the same weights in every contestant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tools.bench.case import ROUNDED, Case, Contestant, Outcome, Settings
from tools.bench.gguf_file import write_gguf
from tools.bench.machine import CUBE, Cost, missing
from tools.bench.readers import Aurora, AuroraGraph, Authors, Llama, Reader, load_backbone, quantize_gguf
from tools.bench.timing import Work
from tools.bench.weights import FULL, QUICK, Size, random_weights

PROMPT, QUICK_PROMPT, GPU_PROMPT = 512, 24, 4096
BEFORE = 16  # tokens that are read before decoding starts
AT_ONCE = 8  # tokens that are decoded in one run; the rounds add up to more than 64
BATCH = 128  # sequences that a GPU decodes side by side
TOLERANCE = {"float32": 1e-3, "bfloat16": ROUNDED, "int8": ROUNDED}
"""Of logits behind 24 layers, from what the modules of our backbone give in float32 on the same weights."""
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


class Entry(NamedTuple):
    """A contestant before its work is chosen."""

    name: str
    make: Callable[[], Reader]
    files: Callable[[], object]
    missing: str | None = None


def prefill(settings: Settings) -> list[Case]:
    """Reading a prompt, up to the logits that follow it."""
    tokens = QUICK_PROMPT if settings.quick else GPU_PROMPT if settings.gpu else PROMPT
    return [_case(f"prefill, {tokens} tokens, {dtype}", settings, dtype, _entries(settings, dtype),
                  partial(_read, tokens=tokens), partial(_reading, size_of(settings), dtype, tokens), tokens)
            for dtype in settings.wanted(*TOLERANCE)]


def decode(settings: Settings) -> list[Case]:
    """One token after the other; on a GPU many sequences side by side too."""
    cases = []
    for dtype in settings.wanted(*TOLERANCE):
        once = partial(_stepping, size_of(settings), dtype)
        entries = _entries(settings, dtype)
        if settings.gpu:
            entries = [_ours(settings, dtype, "aurora, CUDA graph", AuroraGraph), *entries]
            wide = [_ours(settings, dtype, "aurora, CUDA graph", partial(AuroraGraph, sequences=BATCH)),
                    _ours(settings, dtype, "aurora", partial(Aurora, sequences=BATCH))]
            cases.append(_case(f"decode, {BATCH} sequences, {dtype}", settings, dtype, wide, _continue,
                               partial(once, sequences=BATCH), BATCH * AT_ONCE))
        cases.append(_case(f"decode, 1 sequence, {dtype}", settings, dtype, entries, _continue, once, AT_ONCE))
    return cases


def _reading(size: Size, dtype: str, tokens: int, used: float) -> Cost:
    return cost(size, dtype, tokens)


def _stepping(size: Size, dtype: str, used: float, sequences: int = 1) -> Cost:
    """Weights of hidden units that are silent in a step need not be read."""
    each, shape = cost(size, dtype, 1), size.shapes()["blocks.0.ffn.value.weight"]
    unread = (1 - used) * size.layers * shape.numel() * BYTES[dtype]
    return each._replace(flops=AT_ONCE * sequences * each.flops, bytes=AT_ONCE * (each.bytes - unread), product=CUBE)


def cost(size: Size, dtype: str, tokens: int) -> Cost:
    """Products with every matrix of every layer for each token, and with the head for the last one; every weight but
    the embedding is read once."""
    shapes = size.shapes()
    head = shapes["head.weight"].numel()
    matrices = sum(shape.numel() for name, shape in shapes.items() if name.startswith("blocks.") and len(shape) > 1)
    recurrence = 5 * size.layers * size.hidden_size * size.head_size
    return Cost(tokens * (2 * matrices + recurrence) + 2 * head, BYTES[dtype] * (matrices + head),
                "float32" if dtype == "float32" else "bfloat16",
                (tokens, size.hidden_size, shapes["blocks.0.ffn.key.weight"][0]))


def weights_file(settings: Settings, dtype: str) -> Path:
    """The `.pth` that the user gave, or a random one in the dtype of the weights: checkpoints are published so."""
    if settings.weights is not None:
        return settings.weights
    return random_weights(settings.folder, size_of(settings), "float32" if dtype == "float32" else "bfloat16")


def gguf_file(settings: Settings, dtype: str) -> Path:
    """The same weights as llama.cpp reads them, in bfloat16 or q8_0."""
    path = settings.folder / "rwkv6-bfloat16.gguf"
    if not path.exists():
        write_gguf(torch.load(weights_file(settings, dtype), mmap=True, weights_only=True), path, torch.bfloat16)
    if dtype == "bfloat16":
        return path
    quantized = settings.folder / "rwkv6-q8_0.gguf"
    if not quantized.exists():
        quantize_gguf(path, quantized, threads=settings.threads)
    return quantized


def size_of(settings: Settings) -> Size:
    return QUICK if settings.quick else FULL


def _entries(settings: Settings, dtype: str) -> list[Entry]:
    llama = Entry(
        f"llama.cpp {'q8_0' if dtype == 'int8' else 'bf16'}",
        lambda: Llama(gguf_file(settings, dtype), threads=settings.threads, most_tokens=GPU_PROMPT, gpu=settings.gpu),
        partial(gguf_file, settings, dtype), missing("llama_cpp") or missing("gguf"))
    files = partial(weights_file, settings, dtype)
    authors = Entry("rwkv", lambda: Authors(files(), dtype, settings.device), files, missing("rwkv"))
    peers = {"float32": [authors], "bfloat16": [authors, llama], "int8": [llama]}
    return [_ours(settings, dtype, "aurora", Aurora), *peers[dtype]]


def _ours(settings: Settings, dtype: str, name: str, reader: Callable[..., Reader]) -> Entry:
    def make() -> Reader:
        return reader(load_backbone(weights_file(settings, dtype), size_of(settings), dtype, settings.device))

    return Entry(name, make, partial(weights_file, settings, dtype))


def _case(name: str, settings: Settings, dtype: str, entries: list[Entry], doing: Callable[[Reader, int], Work],
          needed: Callable[[float], Cost], items: int) -> Case:
    """`needed` gives the cost from the share of hidden units that are used."""
    vocab = size_of(settings).vocab_size
    contestants = [Contestant(entry.name, partial(_build, entry.make, doing, vocab), entry.missing, entry.files)
                   for entry in entries]
    exact = Exact(settings, dtype, doing)
    return Case(name, contestants, lambda: needed(exact.used), TOLERANCE[dtype], exact, items=items, heavy=True)


@dataclass
class Exact:
    """What is right: the logits of our modules in float32. They also tell which hidden units are used."""

    settings: Settings
    dtype: str
    doing: Callable[[Reader, int], Work]
    used: float = 1.0

    def __call__(self, result: str) -> Outcome:
        size = size_of(self.settings)
        backbone: Any = load_backbone(weights_file(self.settings, self.dtype), size, "float32", self.settings.device)
        shares: list[float] = []
        for block in backbone.blocks:
            block.ffn.key.register_forward_hook(lambda _, given, out: shares.append(float((out > 0).float().mean())))
        logits: Tensor = self.doing(Aurora(backbone, fused=False), size.vocab_size)()
        self.used = sum(shares) / len(shares)
        return logits


def _build(make: Callable[[], Reader], doing: Callable[[Reader, int], Work], vocab: int) -> Work:
    return doing(make(), vocab)


def _read(reader: Reader, vocab: int, *, tokens: int) -> Work:
    ids = _ids(tokens, vocab)

    def work() -> torch.Tensor:
        reader.forget()
        return reader.read(ids)

    return work


def _continue(reader: Reader, vocab: int) -> Work:
    """Every run goes on where the last one ended; all contestants read the same ids."""
    reader.forget()
    reader.decode(_ids(BEFORE, vocab))
    following = cycle(_ids(1000, vocab))

    def work() -> torch.Tensor:
        return reader.decode([next(following) for _ in range(AT_ONCE)])

    if isinstance(reader, Aurora):
        work.reads = [tensor for name, tensor in reader.model.state_dict().items()  # type: ignore[attr-defined]
                      if tensor.nbytes > 2**20 and name != "emb.weight"]
    return work


def _ids(count: int, vocab: int) -> list[int]:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(count)).tolist()
