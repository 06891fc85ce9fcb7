"""What samples are made of, as 64-bit digests: the same medium, the same conversation, wherever they stand.

Counted once per shard and kept beside it as `000000.digests.npz`. Equal digests of different things are to be expected
among some 10^9 of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aurora.errors import BadSample
from aurora.interfaces import Turn

from ..shards.format import parse_record
from ..shards.index import DatasetIndex, open_index, read_sidecar, sidecar, write_sidecar
from ..shards.tar import ShardFiles

_MARKS = re.compile(r"<image>|<video>")
_NO_WORD = re.compile(r"\W+")


class Digests(NamedTuple):
    """Of one shard with S samples, K media and T turns that have an answer; 0 for what cannot be read."""

    text: np.ndarray  # [S] uint64: the whole conversation
    sample: np.ndarray  # [S] uint64: the conversation and its media
    media: np.ndarray  # [K] uint64
    turns: np.ndarray  # [T] uint64: a question with its answer


@dataclass(frozen=True)
class DigestTask:
    """One shard."""

    folder: Path
    number: int


def digest(data: bytes) -> int:
    """64 bits of the sha256; what is kept as 0 is never the digest of anything."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") or 1


def turn_digest(question: str, answer: str) -> int:
    """The same for texts that differ in case, spaces, punctuation or the marks of images alone."""
    return digest(f"{_plain(question)}\n{_plain(answer)}".encode())


def shard_digests(task: DigestTask) -> Digests:
    """The digests of a shard, from the file beside it or from reading it whole."""
    index = open_index(task.folder)
    shard = index.shards[task.number]
    tar = task.folder / str(shard["name"])
    kept = read_sidecar(sidecar(tar, "digests.npz"), str(shard["sha256"]))
    if kept is not None:
        return Digests(*(kept[name] for name in Digests._fields))
    files = ShardFiles()
    texts, samples, media, turns = [], [], [], list[int]()
    for sample in index.of_shard(task.number):
        try:
            key, raw = files.record(index, sample)
            record = parse_record(raw)
        except BadSample:
            texts.append(0)
            samples.append(0)
            media += [0] * int(index.samples[sample]["count"])
            continue
        seen = [_medium(files, index, sample, number, f"{key}.{extension}")
                for number, extension in enumerate(record.media)]
        texts.append(digest("\n".join(_words(record.turns)).encode()))
        samples.append(digest(np.array([texts[-1], *seen], np.uint64).tobytes()) if all(seen) else 0)
        media += seen
        turns += [turn_digest(turn.question, turn.answer) for turn in record.turns if turn.answer is not None]
    files.close()
    found = Digests(*(np.array(column, np.uint64) for column in (texts, samples, media, turns)))
    if os.access(task.folder, os.W_OK):
        write_sidecar(sidecar(tar, "digests.npz"), str(shard["sha256"]), **found._asdict())
    return found


def _medium(files: ShardFiles, index: DatasetIndex, sample: int, number: int, name: str) -> int:
    try:
        return digest(files.media(index, sample, number, name))
    except BadSample:
        return 0


def _plain(text: str) -> str:
    return _NO_WORD.sub(" ", _MARKS.sub(" ", text)).strip().casefold()


def _words(turns: Sequence[Turn]) -> list[str]:
    return [_plain(part or "") for turn in turns for part in turn]
