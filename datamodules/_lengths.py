"""How many text tokens each sample takes: counted once per tokenizer and prompt, and kept beside the index."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np

from aurora.interfaces import Prompt, Text, Tokenizer, Turn

from ._files import ShardFiles
from ._index import DatasetIndex, npy_bytes, replace_file
from ._samples import TEXT, BadSample, Record, parse_record

# Tokenizers and prompts are told apart by what they do, whatever options made them so.
_PROBE = ("User: How many? Wie viele Körper? 几个红色方块？ сколько\n\n"
          "Assistant: 12 + 0.5 → x_1 \U0001f600 {}[]\t  the\r\n")
_TURNS = [Turn("<image>\nWhat moves? Answer the question using a single word or phrase.", "ball\n\nred"),
          Turn("<video> Where?", "left")]


def text_pieces(record: Record, prompt: Prompt, tokenizer: Tokenizer) -> list[tuple[list[int], bool] | None]:
    """The ids of each text piece and whether it is learned; None where the visual tokens stand."""
    return [(tokenizer.encode(piece.text), piece.learned) if isinstance(piece, Text) else None
            for piece in prompt.layout(record.turns, visual=record.kind != TEXT)]


def text_lengths(index: DatasetIndex, prompt: Prompt, tokenizer: Tokenizer) -> np.ndarray:
    """[S] int32: text tokens of every sample, or 1 where the record cannot be read."""
    path = index.folder / f"lengths-{_fingerprint(index, prompt, tokenizer)}.npy"
    if path.is_file():
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
        if kept.shape == (len(index),):
            return np.asarray(kept)
    files = ShardFiles()
    lengths = np.array([_length(files, index, sample, prompt, tokenizer) for sample in range(len(index))], np.int32)
    if os.access(index.folder, os.W_OK):
        replace_file(path, npy_bytes(lengths))
    return lengths


def _length(files: ShardFiles, index: DatasetIndex, sample: int, prompt: Prompt, tokenizer: Tokenizer) -> int:
    try:
        record = parse_record(files.record(index, sample)[1])
    except BadSample:
        return 1
    return sum(len(piece[0]) for piece in text_pieces(record, prompt, tokenizer) if piece)


def _fingerprint(index: DatasetIndex, prompt: Prompt, tokenizer: Tokenizer) -> str:
    does = {
        "samples": index.digest,
        "tokenizer": [type(tokenizer).__qualname__, tokenizer.vocab_size, tokenizer.encode(_PROBE)],
        "prompt": [type(prompt).__qualname__, repr(prompt.layout(_TURNS, visual=True)),
                   repr(prompt.layout(_TURNS, visual=False))],
    }
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()[:16]
