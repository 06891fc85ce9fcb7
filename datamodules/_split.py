"""Samples longer than a row, laid over several: which part of them stands in which."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .plan.packing import Budget
from .shards.format import TEXT, VIDEO


class Part(NamedTuple):
    """One of the rows that a sample is laid over."""

    number: int = 0
    rows: int = 1

    @property
    def first(self) -> bool:
        return self.number == 0

    @property
    def last(self) -> bool:
        return self.number == self.rows - 1

    def of(self, size: int) -> range:
        """This part's share of so many things in a row, as equal as can be, larger ones first."""
        each, more = divmod(size, self.rows)
        start = self.number * each + min(self.number, more)
        return range(start, start + each + (self.number < more))


WHOLE = Part()


def too_long(tokens: np.ndarray, frames: np.ndarray, budget: Budget) -> np.ndarray:
    """[S] bool: samples that no row can hold."""
    room = np.where(frames == 0, budget.tokens - budget.blank, budget.tokens)
    return (tokens > room) | (frames > budget.frames)


def part_counts(
    tokens: np.ndarray, text: np.ndarray, frames: np.ndarray, kinds: np.ndarray, budget: Budget
) -> np.ndarray:
    """[S]: the rows that each sample is laid over; 0 for what cannot be, because its text alone fills a row or because
    it has several images.

    The text before a video stands in the first row and that behind it in the last. How it is divided is not known, so
    that every row has room for all of it.
    """
    each = -(-(tokens - text) // np.maximum(frames, 1))
    frames_per_row = np.minimum(budget.frames, (budget.tokens - text) // np.maximum(each, 1))
    videos = np.where(frames_per_row > 0, -(-frames // np.maximum(frames_per_row, 1)), 0)
    room = budget.tokens - budget.blank
    texts = -(-tokens // room) if room > 0 else np.zeros_like(tokens)
    parts = np.where(kinds == VIDEO, videos, np.where(kinds == TEXT, texts, 0))
    return np.where(too_long(tokens, frames, budget), parts, 1)
