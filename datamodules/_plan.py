"""The order of training as a pure function of (seed, epoch): which samples share a row, which rows share a step.

Datasets are repeated and cut into chunks of 256 samples, which are permuted; runs of chunks are windows; a window is
packed into rows under a token and a frame budget, and its rows are shuffled and divided into steps. A window needs
nothing but its number, so that resuming costs one window, and nothing here knows of ranks or workers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

CHUNK = 256
WINDOW_CHUNKS = 64
# How many rows, from the fullest that could take a sample, are asked before a new one is opened.
_TRIES = 64


@dataclass(frozen=True)
class Budget:
    """What a row may hold."""

    tokens: int
    frames: int
    blank: int = 0  # tokens of the blank frame that a row without frames is given


class Window(NamedTuple):
    """The rows of a window in order, and the steps that they make up."""

    packs: list[np.ndarray]  # sample numbers of each row
    steps: np.ndarray  # [steps + 1]: step s is packs[steps[s]:steps[s + 1]]


class Members(NamedTuple):
    """The samples of one dataset, and how often each is read per epoch."""

    samples: np.ndarray  # [S] int64
    repeats: int


class Plan:
    """Rows and steps of every epoch."""

    def __init__(
        self, members: Sequence[Members], *, tokens: np.ndarray, frames: np.ndarray, group: np.ndarray,
        budget: Budget, global_batch: int, seed: int,
    ) -> None:
        """`tokens`, `frames`, `group` are [S] by sample number; samples of different groups share no row and no step.

        A step holds about `global_batch` samples: the rows of a group in a window are divided into that many steps of
        equal sample counts as comes nearest, for whatever number of ranks.
        """
        self._members, self._tokens, self._frames, self._group = members, tokens, frames, group
        self._budget, self._global_batch, self._seed = budget, global_batch, seed
        self._groups = int(group.max(initial=0)) + 1
        # At least four steps in a window, or its steps could not come near the batch that was asked for.
        self._span = max(WINDOW_CHUNKS, -(-4 * global_batch // CHUNK))
        self._chunks = np.array([
            (number, start) for number, dataset in enumerate(members) for _ in range(dataset.repeats)
            for start in range(0, len(dataset.samples), CHUNK)
        ], np.int64).reshape(-1, 2)
        self._steps: dict[int, np.ndarray] = {}
        self._counts = self._chunk_counts()

    @property
    def windows(self) -> int:
        """Windows per epoch."""
        return -(-len(self._chunks) // self._span)

    @property
    def samples(self) -> int:
        """Samples per epoch, repeats included."""
        return int(self._counts.sum())

    def steps_before(self, epoch: int, window: int) -> int:
        """Optimizer steps of all that comes before a window."""
        return sum(int(self._window_steps(earlier).sum()) for earlier in range(epoch)) + int(
            self._window_steps(epoch)[:window].sum())

    def window(self, epoch: int, window: int) -> Window:
        """The rows and steps of a window."""
        rng = np.random.default_rng([self._seed, epoch, window + 1])
        ids = np.concatenate([self._samples_of(chunk) for chunk in self._window_chunks(epoch, window)])
        ids = rng.permutation(ids)
        steps = [step for group in range(self._groups)
                 for step in self._steps_of(ids[self._group[ids] == group], rng)]
        steps = [steps[index] for index in rng.permutation(len(steps))]
        bounds = np.concatenate([[0], np.cumsum([len(step) for step in steps])]).astype(np.int64)
        return Window([pack for step in steps for pack in step], bounds)

    def _steps_of(self, ids: np.ndarray, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """The packs of some samples, divided into steps."""
        if not len(ids):
            return []
        steps = int(_step_count(np.array(len(ids)), self._global_batch))
        # No pack is larger than a step's share, so that there is a pack for every step.
        rows = best_fit(self._tokens[ids], self._frames[ids], self._budget, len(ids) // steps)
        return balanced([ids[rows[index]] for index in rng.permutation(len(rows))], steps)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._chunks))

    def _window_chunks(self, epoch: int, window: int) -> np.ndarray:
        order = self._order(epoch)[window * self._span:(window + 1) * self._span]
        return np.asarray(self._chunks[order])

    def _samples_of(self, chunk: np.ndarray) -> np.ndarray:
        number, start = chunk
        return np.asarray(self._members[number].samples[start:start + CHUNK])

    def _chunk_counts(self) -> np.ndarray:
        """[C, G]: samples of each group in each chunk."""
        counts = np.zeros((len(self._chunks), self._groups), np.int64)
        for row, chunk in enumerate(self._chunks):
            counts[row] = np.bincount(self._group[self._samples_of(chunk)], minlength=self._groups)
        return counts

    def _window_steps(self, epoch: int) -> np.ndarray:
        """[W]: steps of each window of an epoch."""
        if epoch not in self._steps:
            starts = np.arange(0, len(self._chunks), self._span)
            counts = np.add.reduceat(self._counts[self._order(epoch)], starts, axis=0)
            self._steps[epoch] = _step_count(counts, self._global_batch).sum(1)
        return self._steps[epoch]


def _step_count(samples: np.ndarray, global_batch: int) -> np.ndarray:
    """How many steps of about `global_batch` some samples make: at least one where there are any."""
    nearest = np.maximum(1, (samples + global_batch // 2) // global_batch)
    return np.where(samples > 0, nearest, 0)


def balanced(packs: Sequence[np.ndarray], steps: int) -> list[list[np.ndarray]]:
    """Divides packs into steps of nearly equal sample counts: the largest first, each to the step that has least."""
    chosen: list[list[int]] = [[] for _ in range(steps)]
    least = [(0, step) for step in range(steps)]
    for pack in sorted(range(len(packs)), key=lambda index: -len(packs[index])):
        count, step = heappop(least)
        chosen[step].append(pack)
        heappush(least, (count + len(packs[pack]), step))
    return [[packs[index] for index in sorted(step)] for step in chosen]


def best_fit(tokens: np.ndarray, frames: np.ndarray, budget: Budget, most: int) -> list[np.ndarray]:
    """Packs samples into rows of at most `most`: the largest first, each into the fullest row that has room.

    "Full" is measured in the resource that runs out first. Samples without frames come last and fill the gaps.
    """
    scarce = frames.sum() * budget.tokens > tokens.sum() * budget.frames
    rows = _Rows(budget, most)
    visual, text = np.flatnonzero(frames), np.flatnonzero(frames == 0)
    rows.fill(visual, frames if scarce else tokens, tokens if scarce else frames, by_frames=bool(scarce))
    rows.fill(text, tokens, frames, by_frames=False)
    return [np.array(row, np.int64) for row in rows.members]


class _Rows:
    """Rows being filled: what each holds and how much room it has left."""

    def __init__(self, budget: Budget, most: int) -> None:
        self.budget, self.most = budget, most
        self.members: list[list[int]] = []
        self.room: list[tuple[int, int]] = []  # tokens, frames

    def fill(self, samples: np.ndarray, needed: np.ndarray, also: np.ndarray, *, by_frames: bool) -> None:
        """Puts every sample somewhere. `needed` is what rows are ordered by, `also` the other resource."""
        order = samples[np.argsort(-needed[samples], kind="stable")]
        key = int(by_frames)
        ordered = sorted((room[key], row) for row, room in enumerate(self.room) if len(self.members[row]) < self.most)
        for sample in order.tolist():
            first, second = int(needed[sample]), int(also[sample])
            row = self._take(ordered, first, second, key)
            if row is None:
                row = self._open(visual=bool(by_frames or second))
            room = (self.room[row][key] - first, self.room[row][1 - key] - second)
            self.room[row] = room if key == 0 else (room[1], room[0])
            self.members[row].append(sample)
            if len(self.members[row]) < self.most:
                insort(ordered, (room[0], row))

    def _take(self, ordered: list[tuple[int, int]], first: int, second: int, key: int) -> int | None:
        """Removes and returns the fullest row with room, else the emptiest one if it has."""
        start = bisect_left(ordered, (first, -1))
        for place in [*range(start, min(start + _TRIES, len(ordered))), len(ordered) - 1]:
            if place >= start and self.room[ordered[place][1]][1 - key] >= second:
                return ordered.pop(place)[1]
        return None

    def _open(self, *, visual: bool) -> int:
        self.members.append([])
        reserved = 0 if visual else self.budget.blank
        self.room.append((self.budget.tokens - reserved, self.budget.frames))
        return len(self.members) - 1
