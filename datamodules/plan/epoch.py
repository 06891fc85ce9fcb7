"""The order of training as a pure function of (seed, epoch): which samples share a row, which rows share a step.

Datasets are repeated and cut into chunks of 256 samples, which are permuted; runs of chunks are windows; a window is
packed into rows under a token and a frame budget, and its rows are shuffled and divided into steps. A window needs
nothing but its number, so that resuming costs one window. `schedule` deals the rows of each step to ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, count, islice
from typing import Literal, NamedTuple

import numpy as np

from aurora.types import Position

from .packing import WHOLE, Budget, SamplePart, pack_rows, too_long

CHUNK = 256
WINDOW_CHUNKS = 64
_FILL_WINDOWS = 3
BatchUnit = Literal["samples", "tokens"]


class Window(NamedTuple):
    """The rows of a window in order, and the steps that they make up."""

    packs: list[np.ndarray]  # sample numbers of each row, or the one sample of several rows
    steps: np.ndarray  # [steps + 1]: step s is packs[steps[s]:steps[s + 1]]


class Members(NamedTuple):
    """Samples of one dataset, and how often each is read per epoch."""

    samples: np.ndarray  # [S] integers
    repeats: int


class EpochPlan:
    """Rows and steps of every epoch."""

    def __init__(
        self, members: Sequence[Members], *, tokens: np.ndarray, frames: np.ndarray, group: np.ndarray,
        budget: Budget, global_batch: int, seed: int, batch_unit: BatchUnit = "samples",
    ) -> None:
        """`tokens`, `frames`, `group` are [S] by sample number; samples of different groups share no row and no step.

        The rows of a group in a window are divided into steps of equal sums, as near to `global_batch` samples, or
        tokens, as can be, for whatever number of ranks. A step of tokens holds one row or more.
        """
        self._members, self._tokens, self._frames, self._group = members, tokens, frames, group
        self._budget, self._global_batch, self._seed, self._unit = budget, global_batch, seed, batch_unit
        self._groups = int(group.max(initial=0)) + 1
        self._steps: dict[int, np.ndarray] = {}
        chunks, sums = [np.zeros((0, 2), np.int64)], [np.zeros((0, self._groups), np.int64)]
        for number, dataset in enumerate(members):
            starts = np.arange(0, len(dataset.samples), CHUNK)
            chunks += [np.stack([np.full(len(starts), number), starts], 1)] * dataset.repeats
            sums += [self._chunk_sums(dataset.samples)] * dataset.repeats
        self._chunks = np.concatenate(chunks)  # [C, 2]: dataset and first sample of every chunk, repeats included
        self._sums = np.concatenate(sums)  # [C, G]
        # At least four steps in a window, or its steps could not come near the batch that was asked for.
        average = max(1.0, self._sums.sum() / max(1, self.samples))  # of a sample, in units of the batch
        self._span = max(WINDOW_CHUNKS, int(-(-4 * global_batch // (CHUNK * average))))

    @property
    def windows(self) -> int:
        """Windows per epoch."""
        return -(-len(self._chunks) // self._span)

    @property
    def samples(self) -> int:
        """Samples per epoch, repeats included."""
        return sum(len(dataset.samples) * dataset.repeats for dataset in self._members)

    def steps_before(self, epoch: int, window: int) -> int:
        """Optimizer steps of all that comes before a window."""
        return sum(int(self._window_steps(earlier).sum()) for earlier in range(epoch)) + int(
            self._window_steps(epoch)[:window].sum())

    def visits(self, steps: int) -> np.ndarray:
        """[S] int64: how often each sample is read in so many steps. Only the window that they end in is packed."""
        found, epoch = np.zeros(len(self._tokens), np.int64), 0
        while steps > 0:
            stops = np.cumsum(self._window_steps(epoch))
            if steps >= stops[-1]:
                for dataset in self._members:
                    found[dataset.samples] += dataset.repeats
            else:
                last = int(np.searchsorted(stops, steps, side="right"))
                packs, bounds = self.window(epoch, last)
                some = packs[:bounds[steps - (stops[last - 1] if last else 0)]]
                for samples in chain((self._samples_of(epoch, window) for window in range(last)), some):
                    np.add.at(found, samples, 1)
            steps, epoch = steps - int(stops[-1]), epoch + 1
        return found

    def window(self, epoch: int, window: int) -> Window:
        """The rows and steps of a window."""
        rng = np.random.default_rng([self._seed, epoch, window + 1])
        ids = rng.permutation(self._samples_of(epoch, window))
        steps = [step for group in range(self._groups)
                 for step in self._steps_of(ids[self._group[ids] == group], rng)]
        steps = [steps[index] for index in rng.permutation(len(steps))]
        bounds = np.concatenate([[0], np.cumsum([len(step) for step in steps])]).astype(np.int64)
        return Window([pack for step in steps for pack in step], bounds)

    def fill(self) -> tuple[float, float]:
        """Shares of the token and of the frame budget of rows that samples take, in some windows of the first epoch."""
        chosen = np.unique(np.linspace(0, self.windows - 1, _FILL_WINDOWS).astype(int)).tolist()
        packs = [pack for window in chosen for pack in self.window(0, window).packs]
        tokens = np.array([self._tokens[pack].sum(dtype=np.int64) for pack in packs])
        frames = np.array([self._frames[pack].sum(dtype=np.int64) for pack in packs])
        # A sample that is longer than a row is split over several.
        rows = np.maximum(-(-tokens // self._budget.tokens), -(-frames // self._budget.frames)).sum()
        return float(tokens.sum() / (rows * self._budget.tokens)), float(frames.sum() / (rows * self._budget.frames))

    def _steps_of(self, ids: np.ndarray, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """The packs of some samples, divided into steps."""
        if not len(ids):
            return []
        weights = self._weights(ids)
        steps = int(_step_count(weights.sum(), self._global_batch))
        # A pack of no more samples than a step's share, so that there is a pack for every step; of tokens a row has no
        # more than a step, which says the same.
        most = len(ids) // steps if self._unit == "samples" else len(ids)
        tokens, frames = self._tokens[ids], self._frames[ids]
        long = too_long(tokens, frames, self._budget)
        short = np.flatnonzero(~long)
        rows = [short[row] for row in pack_rows(tokens[short], frames[short], self._budget, most)]
        # What is split over several rows shares none of them, so that one recurrent state is handed on.
        rows += list(np.flatnonzero(long)[:, None])
        rows = [rows[index] for index in rng.permutation(len(rows))]
        sums = [int(weights[row].sum()) for row in rows]
        heaviest = sorted(range(len(rows)), key=lambda row: -sums[row])
        return [[ids[rows[index]] for index in sorted(heaviest[place] for place in step)]
                for step in deal([sums[row] for row in heaviest], steps)]

    def _weights(self, samples: np.ndarray) -> np.ndarray:
        """[S] int64: what each sample counts for in a step."""
        if self._unit == "samples":
            return np.ones(len(samples), np.int64)
        # A sample that is longer than a step is one, or there would be steps without any.
        return np.asarray(np.minimum(self._tokens[samples].astype(np.int64), self._global_batch))

    def _samples_of(self, epoch: int, window: int) -> np.ndarray:
        """[N] int64: the samples of a window, repeated ones as often as they are read."""
        chunks = self._chunks[self._order(epoch)[window * self._span:(window + 1) * self._span]]
        ids = np.concatenate([self._members[number].samples[start:start + CHUNK] for number, start in chunks])
        return ids.astype(np.int64)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._chunks))

    def _chunk_sums(self, samples: np.ndarray) -> np.ndarray:
        """[C, G] int64: what the samples of each group in each chunk of a dataset count for."""
        chunks = -(-len(samples) // CHUNK)
        cells = np.arange(len(samples)) // CHUNK * self._groups + self._group[samples]
        sums = np.bincount(cells, self._weights(samples), chunks * self._groups)
        return sums.astype(np.int64).reshape(chunks, self._groups)

    def _window_steps(self, epoch: int) -> np.ndarray:
        """[W]: steps of each window of an epoch."""
        if epoch not in self._steps:
            starts = np.arange(0, len(self._chunks), self._span)
            sums = np.add.reduceat(self._sums[self._order(epoch)], starts, axis=0)
            self._steps[epoch] = _step_count(sums, self._global_batch).sum(1)
        return self._steps[epoch]


def _step_count(sums: np.ndarray, global_batch: int) -> np.ndarray:
    """How many steps of about `global_batch` some samples make: at least one where there are any."""
    return np.asarray(np.maximum(sums > 0, (sums + global_batch // 2) // global_batch))


def deal(weights: Sequence[int], parts: int) -> list[list[int]]:
    """Deals things in their order, each to the part that has the least weight so far. Equal ones are dealt in turn."""
    dealt: list[list[int]] = [[] for _ in range(parts)]
    least = [(0, part) for part in range(parts)]
    for number, weight in enumerate(weights):
        taken, part = heappop(least)
        dealt[part].append(number)
        heappush(least, (taken + weight, part))
    return dealt


class PlannedRow(NamedTuple):
    """One row of one rank."""

    samples: list[int]  # none: a placeholder row
    part: SamplePart  # of its one sample, where that is split over several rows
    closes_step: bool
    position: Position  # where to resume after it


def schedule(
    plan: EpochPlan, *, position: Position, steps: int, rank: int, world: int,
    parts: Callable[[int], int] = lambda sample: 1,
) -> Iterator[PlannedRow]:
    """The rows of a rank in so many steps from a position on, or from the beginning of the step that it lies in;
    `parts` says over how many rows a sample is split. Every rank is given the same number of rows in a step, the last
    of which may be placeholders."""
    for packs, here, behind in islice(_steps(plan, position), steps):
        rows = [parts(pack[0]) if len(pack) == 1 else 1 for pack in packs]
        dealt = deal(rows, world)
        mine = [(packs[pack], SamplePart(number, rows[pack])) for pack in dealt[rank] for number in range(rows[pack])]
        most = max(sum(rows[pack] for pack in one) for one in dealt)
        for number in range(most):
            samples, part = mine[number] if number < len(mine) else ([], WHOLE)
            last = number == most - 1
            yield PlannedRow(samples, part, last, behind if last else here)


def _steps(plan: EpochPlan, position: Position) -> Iterator[tuple[list[list[int]], Position, Position]]:
    """The packs of every step from a position on, where it begins, and the position behind it; without end."""
    first_epoch, first_window, first_pack = position
    for epoch in count(first_epoch):
        for window in range(first_window, plan.windows):
            packs, bounds = plan.window(epoch, window)
            step = int(np.searchsorted(bounds, first_pack, side="right")) - 1
            for start, stop in zip(bounds[step:-1].tolist(), bounds[step + 1:].tolist(), strict=True):
                behind = (epoch, window, stop)
                if stop == len(packs):
                    behind = (epoch, window + 1, 0) if window + 1 < plan.windows else (epoch + 1, 0, 0)
                yield [pack.tolist() for pack in packs[start:stop]], (epoch, window, start), behind
            first_pack = 0
        first_window = 0
