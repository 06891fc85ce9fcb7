"""How many text tokens each sample takes: counted once per tokenizer and prompt, and kept beside the shards.

Beside `000000.tar` stands `000000.lengths-COUNTER.npz` with `lengths` [S] int32 and the `sha256` of the tar that they
were counted in, so that counting goes on where it was stopped; COUNTER says what tokenizer and prompt do. Whoever
writes shards may count at once: `write_lengths(tar, sha256, counter(prompt, tokenizer), lengths)` with `text_length` of
every record. For the folder they are joined into `lengths-COUNTER-SHARDS.npy`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aurora.errors import BadSample
from aurora.files import replace_file
from aurora.interfaces import Prompt, Text, Tokenizer, Turn

from ..executor.process import ProcessExecutor, cores
from ..shards.format import TEXT, Record, parse_record
from ..shards.index import DatasetIndex, npy_bytes, open_index, read_sidecar, sidecar, write_sidecar
from ..shards.tar import ShardFiles

# Fewer samples are counted before other processes have started.
PARALLEL_SAMPLES = 20_000
# Tokenizers and prompts are identified by what they do, whatever options made them so.
_PROBE = ("User: How many? Wie viele Körper? 几个红色方块？ сколько\n\n"
          "Assistant: 12 + 0.5 → x_1 \U0001f600 {}[]\t  the\r\n")
_TURNS = [Turn("<image>\nWhat moves? Answer the question using a single word or phrase.", "ball\n\nred"),
          Turn("<video> Where?", "left")]
_PLACED = [turn._replace(places=(0, 8)) for turn in _TURNS]
_log = logging.getLogger(__name__)


def row_pieces(record: Record, prompt: Prompt, tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool] | range]:
    """The ids of each text piece and whether it is learned; where visual tokens stand, the numbers of the media."""
    shown = 0
    for piece in prompt.layout(record.turns, visual=record.kind != TEXT):
        if isinstance(piece, Text):
            yield tokenizer.encode(piece.text), piece.learned
        else:
            start, shown = shown, len(record.media) if piece.media is None else shown + piece.media
            yield range(start, shown)


def text_length(raw: bytes, prompt: Prompt, tokenizer: Tokenizer) -> int:
    """Text tokens of a json member, or 1 where it is not a record."""
    try:
        record = parse_record(raw)
    except BadSample:
        return 1
    return sum(len(piece[0]) for piece in row_pieces(record, prompt, tokenizer) if not isinstance(piece, range))


def counter(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """The identity of a tokenizer and a prompt: what they do with a probe."""
    does = {
        "tokenizer": [type(tokenizer).__qualname__, tokenizer.vocab_size, tokenizer.encode(_PROBE)],
        "prompt": [type(prompt).__qualname__, repr(prompt.layout(_TURNS, visual=True)),
                   repr(prompt.layout(_TURNS, visual=False)), repr(prompt.layout(_PLACED, visual=True))],
    }
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()[:12]


def text_lengths(index: DatasetIndex, prompt: Prompt, tokenizer: Tokenizer) -> np.ndarray:
    """[S] int32: text tokens of every sample. Shards that were not counted yet are, on every core."""
    by = counter(prompt, tokenizer)
    path = joined_path(index, by)
    if path.is_file():
        kept = np.load(path, mmap_mode="r", allow_pickle=False)
        if kept.shape == (len(index),):
            return np.asarray(kept)
    parts = {}
    for number, shard in enumerate(index.shards):
        kept = read_sidecar(sidecar(index.folder / str(shard["name"]), f"lengths-{by}.npz"), str(shard["sha256"]))
        if kept is not None and len(kept["lengths"]) == shard["samples"]:
            parts[number] = kept["lengths"]
    left = [_CountTask(index.folder, number, prompt, tokenizer) for number in range(len(index.shards))
            if number not in parts]
    samples = sum(int(index.shards[task.number]["samples"]) for task in left)
    workers = min(len(left), cores())
    if samples < PARALLEL_SAMPLES or workers < 2:
        parts |= map(_count, left)
    else:
        _log.warning("data: counting the text of %d samples in %s with %d processes; this is kept, and done once",
                     samples, index.folder, workers)
        parts |= ProcessExecutor(workers=workers).run(_count, left)
    lengths = np.concatenate([np.zeros(0, np.int32), *(parts[number] for number in range(len(index.shards)))])
    if os.access(index.folder, os.W_OK):
        replace_file(path, npy_bytes(lengths))
    return lengths


def joined_path(index: DatasetIndex, by: str) -> Path:
    """Where the lengths of all samples of a dataset are kept."""
    return index.folder / f"lengths-{by}-{index.digest[:12]}.npy"


def write_lengths(tar: Path, sha256: str, by: str, lengths: np.ndarray) -> None:
    """Keeps the lengths of a shard's samples, in their order, beside it where its folder can be written."""
    write_sidecar(sidecar(tar, f"lengths-{by}.npz"), sha256, lengths=lengths.astype(np.int32))


class _CountTask(NamedTuple):
    """One shard of a folder, and what counts."""

    folder: Path
    number: int
    prompt: Prompt
    tokenizer: Tokenizer


def _count(task: _CountTask) -> tuple[int, np.ndarray]:
    """Number and [S] int32: counts the samples of one shard and keeps the result beside it."""
    index, files = open_index(task.folder), ShardFiles()
    shard = index.shards[task.number]
    lengths = np.ones(int(shard["samples"]), np.int32)
    for place, sample in enumerate(index.of_shard(task.number)):
        with suppress(BadSample):
            lengths[place] = text_length(files.record(index, sample)[1], task.prompt, task.tokenizer)
    by = counter(task.prompt, task.tokenizer)
    write_lengths(index.folder / str(shard["name"]), str(shard["sha256"]), by, lengths)
    return task.number, lengths
