"""The samples of a mixture, numbered, and what each takes of a row."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from aurora.errors import AuroraError
from aurora.images import LONGEST
from aurora.interfaces import Prompt, Sampling, Tokenizer, VisualLayout
from aurora.mixture import Mixture, take

from ..reader._decode import sample_counts
from ..shards.format import TEXT, VIDEO
from ..shards.index import DatasetIndex, load_index
from .arrays import Allocate, Arrays, load_arrays, shared_arrays
from .epoch import Members
from .lengths import counter, text_lengths
from .packing import Budget, part_counts
from .packing import too_long as no_row_holds

TooLong = Literal["shrink", "split", "drop", "refuse"]
Missing = Literal["refuse", "drop"]
FOLDER = ".corpus"
VERSION = 2  # of what is kept there
# Samples that are measured at once, so that the memory which that takes does not grow with the dataset.
_BLOCK = 1 << 20
_log = logging.getLogger(__name__)


class DatasetCounts(NamedTuple):
    """What became of a dataset's samples, those that the mixture does not take included."""

    samples: int
    dropped: int  # no row could hold them
    shrunk: int  # videos that are read with fewer frames than asked for


@dataclass(frozen=True)
class Corpus:
    """Sample number n is sample n - start of the dataset that it falls into."""

    datasets: tuple[DatasetIndex, ...]
    starts: np.ndarray  # [datasets + 1]
    members: tuple[Members, ...]  # the samples that fit and are taken, and their repeats
    tokens: np.ndarray  # [S] int32: row positions of each sample
    text: np.ndarray  # [S] int32: those of its text
    frames: np.ndarray  # [S] int32
    kinds: np.ndarray  # [S] uint8
    counts: tuple[DatasetCounts, ...]  # of each dataset
    identity: str  # of all of this
    folder: Path | None  # where the arrays are mapped from

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process maps the same files instead of carrying the arrays.
        if self.folder is None:
            return Corpus, tuple(vars(self).values())
        return _load, (self.folder, self.datasets)

    def locate(self, sample: int) -> tuple[DatasetIndex, int]:
        """The dataset of a sample, and its number there."""
        dataset = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return self.datasets[dataset], sample - int(self.starts[dataset])


def open_datasets(root: Path, mixture: Mixture, missing: Missing = "refuse") -> list[DatasetIndex]:
    """The indices of a mixture's datasets. AuroraError for folders and shards that are missing, and for cut shards."""
    absent = [name for name in mixture.datasets if not (root / name).is_dir()]
    if absent and (missing == "refuse" or len(absent) == len(mixture.datasets)):
        there = sorted(path.name for path in root.glob("[!.]*") if path.is_dir())
        raise AuroraError(f"data: no dataset folder {', '.join(absent)} below {root}, which holds "
                          f"{', '.join(there) or 'none'}; data.missing=drop trains without some of them")
    if absent:
        _log.warning("data: left out, because they are not below %s: %s", root, ", ".join(absent))
    return [load_index(root / name) for name in mixture.datasets if name not in absent]


def build_corpus(
    root: Path, mixture: Mixture, *, tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None,
    sampling: Sampling, budget: Budget, too_long: TooLong, missing: Missing = "refuse", scratch: Path | None = None,
) -> Corpus:
    """Measures every sample of a mixture and leaves out what no row can hold. The arrays are kept below `root`, or in
    `scratch` where that cannot be written, and mapped from there."""
    datasets = open_datasets(root, mixture, missing)
    mixture = mixture.only(index.folder.name for index in datasets)
    identity = hashlib.sha256(json.dumps([
        VERSION, [index.digest for index in datasets], mixture.plain(), counter(prompt, tokenizer),
        _layout_identity(layout), asdict(sampling), asdict(budget), too_long,
    ]).encode()).hexdigest()[:16]
    arrays = shared_arrays(
        [root / FOLDER, *([scratch] if scratch else [])], identity,
        lambda allocate: _fill(datasets, mixture, prompt, tokenizer, layout, sampling, budget, too_long, allocate))
    corpus = _corpus(arrays, tuple(datasets), identity)
    total, dropped = len(corpus.tokens), sum(count.dropped for count in corpus.counts)
    shrunk = sum(count.shrunk for count in corpus.counts)
    if dropped == total:
        raise AuroraError(f"data: not one of the {total} samples fits a row of {budget.tokens} tokens and "
                          f"{budget.frames} frames; the smallest takes {int(corpus.tokens.min())} tokens")
    if dropped and too_long == "refuse":
        raise AuroraError(f"data: {dropped} of {total} samples are longer than a row of {budget.tokens} tokens "
                          f"and {budget.frames} frames; data.too_long=shrink, split or drop says what becomes of them")
    if dropped or shrunk:
        _log.warning("data: of %d samples %d are longer than a row and left out, %d videos are read with fewer frames",
                     total, dropped, shrunk)
    return corpus


def _fill(
    datasets: Sequence[DatasetIndex], mixture: Mixture, prompt: Prompt, tokenizer: Tokenizer,
    layout: VisualLayout | None, sampling: Sampling, budget: Budget, too_long: TooLong, allocate: Allocate,
) -> dict[str, Any]:
    """The arrays of a corpus, and what its members and counts are."""
    total = sum(len(index) for index in datasets)
    arrays = {name: allocate(name, np.dtype(np.int32), total) for name in ("tokens", "text", "frames")}
    arrays["kinds"] = allocate("kinds", np.dtype(np.uint8), total)
    start, counts, fitting = 0, [], {}
    for index in datasets:
        lengths = text_lengths(index, prompt, tokenizer)
        kept, shrunk = [np.zeros(0, np.uint32)], 0
        for where in _blocks(index):
            here = slice(start + where.start, start + where.stop)
            block, fits, fewer = _measured(index, where, lengths[where], layout, sampling, budget, too_long)
            for name, values in block.items():
                arrays[name][here] = values
            kept.append((np.flatnonzero(fits) + here.start).astype(np.uint32))
            shrunk += int((fewer & fits).sum())
        fitting[index.folder.name] = np.concatenate(kept)
        counts.append(DatasetCounts(len(index), len(index) - len(fitting[index.folder.name]), shrunk))
        start += len(index)
    read = [one for of_dataset in members(mixture, fitting) for one in of_dataset]
    stops = np.cumsum([0, *(len(one.samples) for one in read)]).tolist()
    np.concatenate([np.zeros(0, np.uint32), *(one.samples for one in read)],
                   out=allocate("members", np.dtype(np.uint32), stops[-1]))
    return {"members": [[first, stop, one.repeats] for one, first, stop in zip(read, stops, stops[1:], strict=False)],
            "counts": counts}


def members(mixture: Mixture, samples: Mapping[str, np.ndarray]) -> list[list[Members]]:
    """What is read of each dataset's samples, in the order of `mixture`: which ones follows from its name alone, and
    asking for more keeps those of before."""
    read: list[list[Members]] = []
    for name, (count, visits) in take(mixture, {name: len(numbers) for name, numbers in samples.items()}).items():
        taken = _chosen(name, samples[name], count)
        repeats, rest = divmod(visits, max(1, count))
        more = [Members(_chosen(name, taken, rest), 1)] if rest else []
        read.append([Members(taken, repeats), *more] if count else [])
    return read


def _chosen(name: str, samples: np.ndarray, count: int) -> np.ndarray:
    """So many of the samples, in their order."""
    if count == len(samples):
        return samples
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return samples[np.sort(np.random.default_rng(seed).permutation(len(samples))[:count])]


def _measured(
    index: DatasetIndex, where: slice, text: np.ndarray, layout: VisualLayout | None, sampling: Sampling,
    budget: Budget, too_long: TooLong,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The arrays of a block of samples; [S] bool: which fit a row, and which are read with fewer frames."""
    kinds = np.asarray(index.samples["kind"][where])
    if layout is None and (kinds != TEXT).any():
        raise AuroraError(f"data: {index.folder} holds images or videos, but the model has no vision encoder")
    frames, each, visual = _visual(index, where, layout, sampling)
    text = text.astype(np.int64)
    fewer = frames
    if too_long == "shrink":  # to what fits, where anything does
        most = np.minimum(budget.frames, (budget.tokens - text) // np.maximum(each, 1))
        fewer = np.where((kinds == VIDEO) & (most >= 1), np.minimum(frames, most), frames)
    tokens = text + np.where(fewer < frames, fewer * each, visual)
    fits = (part_counts(tokens, text, fewer, kinds, budget) > 0 if too_long == "split"
            else ~no_row_holds(tokens, fewer, budget))
    return {"tokens": tokens, "text": text, "frames": fewer, "kinds": kinds}, fits, fewer < frames


def _corpus(arrays: Arrays, datasets: tuple[DatasetIndex, ...], identity: str) -> Corpus:
    held, facts = arrays.arrays, arrays.facts
    return Corpus(
        datasets, np.cumsum([0, *(len(index) for index in datasets)]),
        tuple(Members(held["members"][start:stop], repeats) for start, stop, repeats in facts["members"]),
        held["tokens"], held["text"], held["frames"], held["kinds"],
        tuple(DatasetCounts(*count) for count in facts["counts"]), identity, arrays.folder)


def _load(folder: Path, datasets: tuple[DatasetIndex, ...]) -> Corpus:
    return _corpus(load_arrays(folder), datasets, folder.name)


def _layout_identity(layout: VisualLayout | None) -> Any:
    """What decides how many positions any frame takes, as JSON."""
    if layout is None:
        return None
    size = layout.prepare.size
    most = layout.prepare.patches(LONGEST * size, size)
    kept = [layout.merge.keep(patches, layout.depth, layout.keep_ratio) for patches in range(1, most + 1)]
    stamped = [] if layout.timestamps is None else [layout.timestamps.tokens]
    return [asdict(layout.prepare), kept, *stamped]


def frame_shape(row: np.void, layout: VisualLayout) -> tuple[int, int]:
    """Height and width before preparation; a medium that could not be measured counts as one of the model's own."""
    size = layout.prepare.size
    return (int(row["height"]), int(row["width"])) if row["height"] else (size, size)


def blank_tokens(layout: VisualLayout | None) -> int:
    """Tokens of the blank frame that a row without frames is given."""
    return 0 if layout is None else layout.tokens(layout.prepare.size, layout.prepare.size)


def square_positions(layout: VisualLayout | None) -> int:
    """Positions of a square frame of a sample."""
    return 0 if layout is None else layout.positions(layout.prepare.size, layout.prepare.size)


class VisualLengths(NamedTuple):
    """What the media of every sample take: 3 × [S] int64."""

    frames: np.ndarray
    each: np.ndarray  # positions of a frame of the first medium
    tokens: np.ndarray


def visual_lengths(index: DatasetIndex, layout: VisualLayout | None, sampling: Sampling) -> VisualLengths:
    """The lengths of a dataset's samples; 0 where nothing is seen."""
    blocks = [_visual(index, where, layout, sampling) for where in _blocks(index)]
    return VisualLengths(*(np.concatenate([np.zeros(0, np.int64), *column]) for column in zip(*blocks, strict=True)))


def _blocks(index: DatasetIndex) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, len(index))) for start in range(0, len(index), _BLOCK))


def _visual(index: DatasetIndex, where: slice, layout: VisualLayout | None, sampling: Sampling) -> VisualLengths:
    """The lengths of some samples that follow each other, and so do their media."""
    samples = np.asarray(index.samples[where])
    counts = samples["count"].astype(np.int64)
    start = int(samples["media"][0]) if len(samples) else 0
    media = np.asarray(index.media[start:start + int(counts.sum())])
    if layout is None or not len(media):
        return VisualLengths(*np.zeros((3, len(samples)), np.int64))
    # One number for both sides: whole rows are slow to sort.
    shapes, which = np.unique(media["height"].astype(np.uint64) << 32 | media["width"], return_inverse=True)
    of_shape = np.array([layout.positions(int(shape >> 32), int(shape & 0xFFFFFFFF)) if shape >> 32 else
                         square_positions(layout) for shape in shapes.tolist()])
    each = of_shape[which]
    owner = np.repeat(np.arange(len(samples)), counts)
    played = (samples["kind"][owner] == VIDEO) & (media["height"] > 0)
    count = np.where(played, sample_counts(sampling, media["duration"], media["frames"]), 1)
    frames = np.bincount(owner, count, len(samples)).astype(np.int64)
    visual = np.bincount(owner, count * each, len(samples)).astype(np.int64)
    first = np.minimum(samples["media"].astype(np.int64) - start, len(media) - 1)
    return VisualLengths(frames, np.where(counts > 0, each[first], 0), visual)
