"""What datasets hold: counts, lengths, and what they share with each other and with evaluation sets.

What is shared is found by 64-bit digests of media and conversations, counted once per shard and kept beside it as
`000000.digests.npz`. Equal digests of different things are to be expected among some 10^9 of them.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aurora.errors import AuroraError, BadSample
from aurora.evaluation.questions import read_questions
from aurora.interfaces import Executor, Prompt, Sampling, Tokenizer, VisualLayout

from ..plan.corpus import visual_lengths
from ..plan.lengths import text_lengths
from ..shards.format import KINDS, parse_record
from ..shards.index import DatasetIndex, load_index, open_index, read_sidecar, sidecar, write_sidecar
from ..shards.tar import ShardFiles

QUANTILES = (0.05, 0.5, 0.95, 1.0)
_MARKS = re.compile(r"<image>|<video>")
_NO_WORD = re.compile(r"\W+")


class Evaluation(NamedTuple):
    """What an evaluation set shows and asks."""

    name: str
    media: np.ndarray  # uint64
    turns: np.ndarray  # uint64


def describe(
    folders: Sequence[Path], *, tokenizer: Tokenizer, prompt: Prompt, layouts: Mapping[float, VisualLayout],
    sampling: Sampling, executor: Executor, evaluations: Sequence[Evaluation] = (),
) -> dict[str, Any]:
    """Everything as plain numbers: `datasets` by name, and `duplicates` within and across them.

    `layouts` is by keep ratio. AuroraError for a folder without a whole index.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise AuroraError(f"two of {', '.join(map(str, folders))} have the same name, which must differ")
    indices = [load_index(folder) for folder in folders]
    datasets, digests = {}, {}
    for index in indices:
        each = executor.run(shard_digests, [DigestTask(index.folder, number) for number in range(len(index.shards))])
        found = Digests(*(np.concatenate(column) for column in zip(*each, strict=True)))
        digests[index.folder.name] = found
        datasets[index.folder.name] = {
            **_counts(index),
            **_lengths(index, tokenizer, prompt, layouts, sampling),
            "turns": len(found.turns),
            "duplicates": {"samples": _repeated(found.sample), "media": _repeated(found.media),
                           "conversations": _repeated(found.text)},
            "unreadable": int((found.text == 0).sum()),
            "in_evaluation": {one.name: {"media": int(np.isin(found.media, one.media).sum()),
                                         "turns": int(np.isin(found.turns, one.turns).sum())} for one in evaluations},
        }
    return {"datasets": datasets, "shared": _across(digests)}


def read_evaluation(folder: str | Path) -> Evaluation:
    """The media and the questions with their answers of a folder with `questions.jsonl`. AuroraError names what cannot
    be read."""
    folder, media, turns = Path(folder), set[int](), set[int]()
    for question in read_questions(folder):
        turns.add(turn_digest(question.question, question.answer))
        try:
            media.add(digest((folder / question.video).read_bytes()))
        except OSError as error:
            raise AuroraError(f"{folder}, question {question.id!r}: {error}") from error
    return Evaluation(folder.name, np.array(sorted(media), np.uint64), np.array(sorted(turns), np.uint64))


def _counts(index: DatasetIndex) -> dict[str, Any]:
    kinds = np.bincount(np.asarray(index.samples["kind"]), minlength=len(KINDS))
    media = np.asarray(index.media)
    return {
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum(int(shard["bytes"]) for shard in index.shards),
        "kinds": {name: int(count) for name, count in zip(KINDS, kinds, strict=True)},
        "media": len(media),
        "broken_media": int((media["height"] == 0).sum()),
        "seconds": _spread(media["duration"][media["duration"] > 0]),
        "short_side": _spread(np.minimum(media["height"], media["width"])[media["height"] > 0]),
    }


def _lengths(
    index: DatasetIndex, tokenizer: Tokenizer, prompt: Prompt, layouts: Mapping[float, VisualLayout], sampling: Sampling
) -> dict[str, Any]:
    text = text_lengths(index, prompt, tokenizer)
    found: dict[str, Any] = {"text_tokens": _spread(text)}
    for ratio, layout in layouts.items():
        lengths = visual_lengths(index, layout, sampling)
        found.setdefault("frames", _spread(lengths.frames[lengths.frames > 0]))
        found.setdefault("tokens", {})[f"{ratio:g}"] = _spread(text + lengths.tokens)
    return found


def _spread(values: np.ndarray) -> dict[str, Any]:
    """The sum over the samples that have a quantity, and its values at QUANTILES."""
    quantiles = np.quantile(values, QUANTILES).tolist() if len(values) else []
    return {"total": float(values.sum(dtype=np.float64)), "quantiles": quantiles}


def _repeated(digests: np.ndarray) -> int:
    """How many of some could be left out without losing one."""
    readable = digests[digests != 0]
    return len(readable) - len(np.unique(readable))


def _across(digests: "Mapping[str, Digests]") -> list[dict[str, Any]]:
    """For every two datasets what stands in both, where anything does."""
    samples, media, texts = (_common([getattr(found, key) for found in digests.values()])
                             for key in ("sample", "media", "text"))
    names = list(digests)
    return [{"between": [names[a], names[b]], "samples": int(samples[a, b]), "media": int(media[a, b]),
             "conversations": int(texts[a, b])}
            for a, b in np.argwhere(samples + media + texts)]


def _common(columns: Sequence[np.ndarray]) -> np.ndarray:
    """[D, D]: how many different digests dataset a < b shares with b."""
    each = [np.unique(column[column != 0]) for column in columns]
    values, owner = np.concatenate(each), np.repeat(np.arange(len(each)), [len(column) for column in each])
    order = np.argsort(values, kind="stable")  # equal ones stand together, in the order of their datasets
    values, owner = values[order], owner[order]
    shared = np.zeros((len(each), len(each)), np.int64)
    for apart in range(1, len(each)):
        same = values[apart:] == values[:-apart]
        np.add.at(shared, (owner[:-apart][same], owner[apart:][same]), 1)
    return shared


class Digests(NamedTuple):
    """Of one shard with S samples, K media and T turns that have an answer; 0 for what cannot be read."""

    text: np.ndarray  # [S] uint64: the whole conversation
    sample: np.ndarray  # [S] uint64: the conversation and its media
    media: np.ndarray  # [K] uint64
    turns: np.ndarray  # [T] uint64: a question with its answer


class DigestTask(NamedTuple):
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
        seen = [0] * len(record.media)
        for number, extension in enumerate(record.media):
            with suppress(BadSample):
                seen[number] = digest(files.media(index, sample, number, f"{key}.{extension}"))
        said = (part for turn in record.turns for part in (turn.question, turn.answer or ""))
        texts.append(digest("\n".join(map(_plain, said)).encode()))
        samples.append(digest(np.array([texts[-1], *seen], np.uint64).tobytes()) if all(seen) else 0)
        media += seen
        turns += [turn_digest(turn.question, turn.answer) for turn in record.turns if turn.answer is not None]
    found = Digests(*(np.array(column, np.uint64) for column in (texts, samples, media, turns)))
    write_sidecar(sidecar(tar, "digests.npz"), str(shard["sha256"]), **found._asdict())
    return found


def _plain(text: str) -> str:
    return _NO_WORD.sub(" ", _MARKS.sub(" ", text)).strip().casefold()
