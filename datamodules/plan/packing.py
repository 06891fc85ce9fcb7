"""Which samples share a row, bin-packed by what runs out first, and which are split over several rows."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np

from ..shards.format import TEXT, VIDEO

# How often the rest of a row is drawn anew before its fullest form is taken, and what room is no longer worth it.
_ATTEMPTS = 12
_SLACK = 512
# How many samples or rows, from the one that fits best, are asked whether the other resource suffices as well.
_TRIES = 64


@dataclass(frozen=True)
class Budget:
    """What a row may hold."""

    tokens: int
    frames: int
    blank: int = 0  # tokens of the blank frame that a row without frames is given


class SamplePart(NamedTuple):
    """One of the rows that a sample is split over."""

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


WHOLE = SamplePart()


def too_long(tokens: np.ndarray, frames: np.ndarray, budget: Budget) -> np.ndarray:
    """[S] bool: samples that no row can hold."""
    room = np.where(frames == 0, budget.tokens - budget.blank, budget.tokens)
    return (tokens > room) | (frames > budget.frames)


def part_counts(
    tokens: np.ndarray, text: np.ndarray, frames: np.ndarray, kinds: np.ndarray, budget: Budget
) -> np.ndarray:
    """[S]: the rows that each sample is split over; 0 for what cannot be: its text alone fills a row, or it has several
    images. As it is not known what stands before a video and what behind, every row has room for all of its text."""
    each = -(-(tokens - text) // np.maximum(frames, 1))
    frames_per_row = np.minimum(budget.frames, (budget.tokens - text) // np.maximum(each, 1))
    videos = np.where(frames_per_row > 0, -(-frames // np.maximum(frames_per_row, 1)), 0)
    room = budget.tokens - budget.blank
    texts = -(-tokens // room) if room > 0 else np.zeros_like(tokens)
    parts = np.where(kinds == VIDEO, videos, np.where(kinds == TEXT, texts, 0))
    return np.where(too_long(tokens, frames, budget), parts, 1)


def pack_rows(tokens: np.ndarray, frames: np.ndarray, budget: Budget, most: int) -> list[np.ndarray]:
    """Packs samples into rows of at most `most`: the positions in `tokens` and `frames` of each row's samples. Rows are
    filled by the resource that runs out first; where that is frames, samples without any go into the gaps."""
    visual, text = np.flatnonzero(frames), np.flatnonzero(frames == 0)
    if frames.sum(dtype=np.int64) * budget.tokens > tokens.sum(dtype=np.int64) * budget.frames:
        rows = _fill(visual, frames, tokens, (budget.frames, budget.tokens), most)
        return [np.array(row, np.int64) for row in _fill_gaps(rows, text, tokens, budget, most)]
    # A row that begins with a text may stay without frames, so that room for the blank one is kept.
    reserved = budget.blank * (frames == 0)
    rows = _fill(np.arange(len(tokens)), tokens, frames, (budget.tokens, budget.frames), most, reserved)
    return [np.array(row, np.int64) for row in rows]


def _fill(
    samples: np.ndarray, needed: np.ndarray, also: np.ndarray, room: tuple[int, int], most: int,
    reserved: np.ndarray | None = None,
) -> list[list[int]]:
    """Rows that each begin with the largest sample left and are filled up by drawing from all that fit: most rows come
    out full, and samples of every size share one, so that a step of few rows sees what the data holds."""
    order = samples[np.argsort(needed[samples], kind="stable")]
    left, sizes, others = order.tolist(), needed[order].tolist(), also[order].tolist()
    kept = [0] * len(order) if reserved is None else reserved[order].tolist()
    draws = cycle(np.random.default_rng(0).random(1 << 14).tolist())
    rows = []
    while left:
        row = _fullest(sizes, others, (room[0] - kept[-1], room[1]), most, draws)
        rows.append([left[place] for place in row])
        for place in sorted(row, reverse=True):
            del left[place], sizes[place], others[place], kept[place]
    return rows


def _fullest(
    sizes: list[int], others: list[int], room: tuple[int, int], most: int, draws: Iterator[float]
) -> list[int]:
    """Places in the ascending `sizes` of the samples of one row: the last, and those that fill it best."""
    best, least = [len(sizes) - 1], room[0]
    for attempt in range(_ATTEMPTS):
        row, rest = _drawn(sizes, others, room, most, draws if attempt else None)
        if rest < least:
            best, least = row, rest
        if least <= room[0] // _SLACK:
            break
    return best


def _drawn(
    sizes: list[int], others: list[int], room: tuple[int, int], most: int, draws: Iterator[float] | None
) -> tuple[list[int], int]:
    """One attempt: the largest sample that fits, or a drawn one while two more fit, until nothing does."""
    last = len(sizes) - 1
    row, taken = [last], {last}
    rest, other = room[0] - sizes[last], room[1] - others[last]
    while len(row) < most:
        fitting = bisect_right(sizes, rest)
        if draws is not None and rest >= 2 * sizes[0]:
            fitting = int(next(draws) * fitting) + 1
        # the last one whose need of the other resource is met as well
        free = (place for place in range(fitting - 1, -1, -1) if place not in taken)
        place = next((place for place in islice(free, _TRIES) if others[place] <= other), None)
        if place is None:
            break
        row.append(place)
        taken.add(place)
        rest -= sizes[place]
        other -= others[place]
    return row, rest


def _fill_gaps(
    rows: list[list[int]], text: np.ndarray, tokens: np.ndarray, budget: Budget, most: int
) -> list[list[int]]:
    """Puts samples without frames, the largest first, into the row with the least room that suffices, or a new one."""
    rooms = sorted((budget.tokens - int(tokens[row].sum()), number) for number, row in enumerate(rows)
                   if len(row) < most)
    for sample in text[np.argsort(-tokens[text], kind="stable")].tolist():
        size = int(tokens[sample])
        place = bisect_left(rooms, (size, -1))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = budget.tokens - budget.blank, len(rows)
            rows.append([])
        rows[number].append(sample)
        if len(rows[number]) < most:
            insort(rooms, (room - size, number))
    return rows
