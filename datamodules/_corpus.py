"""The samples of a mixture, numbered, and what each takes of a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from aurora.errors import AuroraError
from aurora.images import VisualLayout
from aurora.interfaces import Prompt, Sampling, Tokenizer

from ._index import DatasetIndex, load_index
from ._lengths import text_lengths
from ._packing import Budget
from ._plan import Members
from ._samples import IMAGE, IMAGES, TEXT, VIDEO
from .reader._sampling import sample_counts

TooLong = Literal["shrink", "drop"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Sample number n is sample n - start of the dataset that it falls into."""

    datasets: tuple[DatasetIndex, ...]
    starts: np.ndarray  # [datasets + 1]
    members: tuple[Members, ...]  # the samples that fit, and their repeats
    tokens: np.ndarray  # [S] int32: row positions of each sample
    text: np.ndarray  # [S] int32: those of its text
    frames: np.ndarray  # [S] int32
    kinds: np.ndarray  # [S] uint8
    dropped: int  # samples that no row could hold
    shrunk: int  # videos that are read with fewer frames than asked for

    def locate(self, sample: int) -> tuple[DatasetIndex, int]:
        """The dataset of a sample, and its number there."""
        dataset = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return self.datasets[dataset], sample - int(self.starts[dataset])


def open_datasets(root: Path, mixture: Mapping[str, int]) -> list[DatasetIndex]:
    """The indices of a mixture's datasets. AuroraError for a bad name, repeat or shard."""
    if not mixture:
        raise AuroraError("data: the mixture is empty; it names dataset folders and how often each is read per epoch")
    for name, repeats in mixture.items():
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise AuroraError(f"data: mixture {name!r} is read {repeats!r} times per epoch; give 1, 2, ...")
        if not (root / name).is_dir():
            there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
            raise AuroraError(f"data: no dataset folder {root / name}; {root} holds {', '.join(there) or 'none'}")
    return [load_index(root / name) for name in mixture]


def build_corpus(
    root: Path, mixture: Mapping[str, int], *, tokenizer: Tokenizer, prompt: Prompt, layout: VisualLayout | None,
    sampling: Sampling, budget: Budget, too_long: TooLong,
) -> Corpus:
    """Measures every sample of a mixture and leaves out what no row can hold."""
    datasets = open_datasets(root, mixture)
    text = np.concatenate([text_lengths(index, prompt, tokenizer) for index in datasets]).astype(np.int64)
    kinds = np.concatenate([np.asarray(index.samples["kind"]) for index in datasets])
    if layout is None and (kinds != TEXT).any():
        raise AuroraError("data: the mixture holds images or videos, but the model sees nothing")
    parts = [visual_lengths(index, layout, sampling) for index in datasets]
    frames, each, visual = (np.concatenate(column) for column in zip(*parts, strict=True))
    fewer = _fewer(kinds, text, frames, each, budget) if too_long == "shrink" else frames
    visual = np.where(fewer < frames, fewer * each, visual)
    tokens = text + visual
    room = np.where(fewer == 0, budget.tokens - budget.blank, budget.tokens)
    fits = (tokens <= room) & (fewer <= budget.frames)
    starts = np.cumsum([0, *(len(index) for index in datasets)])
    corpus = Corpus(
        tuple(datasets), starts,
        tuple(Members(np.flatnonzero(fits[start:stop]) + start, repeats)
              for start, stop, repeats in zip(starts[:-1], starts[1:], mixture.values(), strict=True)),
        tokens.astype(np.int32), text.astype(np.int32), fewer.astype(np.int32), kinds,
        int((~fits).sum()), int(((fewer < frames) & fits).sum()))
    _report(corpus, budget)
    return corpus


def frame_shape(row: np.void, layout: VisualLayout) -> tuple[int, int]:
    """Height and width before preparation; a medium that could not be measured stands for one of the model's own."""
    size = layout.prepare.size
    return (int(row["height"]), int(row["width"])) if row["height"] else (size, size)


def blank_tokens(layout: VisualLayout | None) -> int:
    """Tokens of the blank frame that a row without frames is given."""
    return 0 if layout is None else layout.tokens(layout.prepare.size, layout.prepare.size)


class VisualLengths(NamedTuple):
    """What the media of every sample take: 3 × [S] int64."""

    frames: np.ndarray
    each: np.ndarray  # tokens of a frame of the first medium
    tokens: np.ndarray


def visual_lengths(index: DatasetIndex, layout: VisualLayout | None, sampling: Sampling) -> VisualLengths:
    """The lengths of a dataset's samples; 0 where nothing is seen."""
    media, samples = np.asarray(index.media), np.asarray(index.samples)
    if layout is None or not len(media):
        return VisualLengths(*np.zeros((3, len(samples)), np.int64))
    sides = np.stack([media["height"], media["width"]], 1)
    shapes, which = np.unique(sides, axis=0, return_inverse=True)
    of_shape = np.array([layout.tokens(int(h), int(w)) if h else blank_tokens(layout) for h, w in shapes])
    each = of_shape[which.reshape(-1)]
    count = np.where(media["height"] > 0, sample_counts(sampling, media["duration"]), 1)
    owner = np.repeat(np.arange(len(samples)), samples["count"])
    count = np.where(samples["kind"][owner] == VIDEO, count, 1)
    frames = np.bincount(owner, count, len(samples)).astype(np.int64)
    visual = np.bincount(owner, count * each, len(samples)).astype(np.int64)
    first = np.minimum(samples["media"].astype(np.int64), len(media) - 1)
    return VisualLengths(frames, np.where(samples["count"] > 0, each[first], 0), visual)


def _fewer(kinds: np.ndarray, text: np.ndarray, frames: np.ndarray, each: np.ndarray, budget: Budget) -> np.ndarray:
    """[S]: the frames with which a video fits, or as many as before where none would do."""
    most = np.minimum(budget.frames, (budget.tokens - text) // np.maximum(each, 1))
    return np.where((kinds == VIDEO) & (most >= 1), np.minimum(frames, most), frames)


def _report(corpus: Corpus, budget: Budget) -> None:
    total = len(corpus.tokens)
    if corpus.dropped == total:
        raise AuroraError(f"data: none of the {total} samples fits a row of {budget.tokens} tokens and "
                          f"{budget.frames} frames; the smallest takes {int(corpus.tokens.min())} tokens")
    if corpus.dropped or corpus.shrunk:
        _log.warning("data: of %d samples %d are longer than a row and left out, %d videos are read with fewer frames",
                     total, corpus.dropped, corpus.shrunk)


def kind_groups(kinds: np.ndarray, *, mix_kinds: bool) -> np.ndarray:
    """[S] uint8: samples of different groups share no row and no step; single images and text are one group."""
    apart = np.isin(kinds, (IMAGES, VIDEO))
    both = bool(apart.any()) and bool((kinds == IMAGE).any())
    return (apart & both & (not mix_kinds)).astype(np.uint8)
