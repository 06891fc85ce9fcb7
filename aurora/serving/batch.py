"""Sequences that go through the backbone together: their states lie side by side, and are copied only when a sequence
joins or leaves.

Shape letters: S sequences, T positions that one of them reads, D backbone width, V vocabulary.
"""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from aurora.inference.reading import Memory
from aurora.inference.steps import StepGraph
from aurora.interfaces import Runner
from aurora.types import State, join_states, map_state, select_state

log = logging.getLogger(__name__)

GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of sequences for which the step is captured on CUDA; fewer sequences use the next larger graph."""

FEW = 8
"""Sequences up to which a step of their own is always the shortest way."""

TRIES = 3


class Member:
    """One sequence: what it has read, while its state does not lie in the batch."""

    def __init__(self, memory: Memory) -> None:
        self.memory: Memory | None = memory
        self.ended = False  # its state is not needed any more


class Batch:
    """The sequences of the last pass, in its order. Whoever is left out of the next one is copied out of it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._backbone = runner.backbone
        self._members: list[Member] = []
        self._state: State = {}
        self._hidden: Tensor | None = None
        self._graph: StepGraph | None = None  # which holds the state now
        self._graphs: dict[int, StepGraph | None] = {}
        self._ways: dict[int, Way] = {}

    @torch.inference_mode()
    def step(self, members: list[Member], tokens: Tensor) -> Tensor:
        """Every sequence reads its token [S] → the logits [S, V], which the next call may overwrite."""
        graph = self._graph_of(len(members))
        if graph is None:
            state = self._enter(members)
            x = self._backbone.embed(tokens)
            self._hidden, self._state = self._way(x, state)(self._runner, x, state)
            return self._backbone.logits(self._hidden)
        if members != self._members or graph is not self._graph:
            graph.load(self._enter(members))
            self._graph, self._state = graph, {name: held[:, : len(members)] for name, held in graph.state.items()}
        padded = torch.cat([tokens, tokens.new_zeros(len(graph.tokens) - len(tokens))])
        hidden, logits = graph.read(padded)
        self._hidden = hidden[: len(members)]
        return logits[: len(members)]

    @torch.inference_mode()
    def read(self, members: list[Member], rows: Sequence[Tensor]) -> Tensor:
        """Every sequence reads its row [T, D] → the hidden states after the last positions [S, D]."""
        state = self._enter(members)
        bounds = torch.tensor([0, *map(len, rows)], device=rows[0].device).cumsum(0)
        self._hidden, self._state = self._runner.prefill(torch.cat(list(rows)), bounds, state)
        return self._hidden

    def memory(self, member: Member) -> Memory:
        """What a sequence has read, as a value of its own."""
        return self._copy(self._members.index(member)) if member.memory is None else member.memory

    def _way(self, x: Tensor, state: State) -> "Way":
        """How so many sequences are stepped in the shortest time, tried out once for every power of two."""
        size = len(x).bit_length()
        if len(x) <= FEW:
            return WAYS[0]
        if size not in self._ways:
            seconds = [min(_seconds(way, self._runner, x, state) for _ in range(TRIES)) for way in WAYS]
            self._ways[size] = WAYS[seconds.index(min(seconds))]
        return self._ways[size]

    def clear(self) -> None:
        """Forgets every sequence, after an error that may have left their states half written."""
        self._members, self._state, self._hidden, self._graph = [], {}, None, None

    def _enter(self, members: list[Member]) -> State:
        """The states of the sequences side by side, which from here on are the batch."""
        if members == self._members:
            return self._state
        rows = {id(member): row for row, member in enumerate(self._members)}
        staying = set(map(id, members))
        for row, member in enumerate(self._members):
            if not member.ended and id(member) not in staying:
                member.memory = self._copy(row)
        parts: list[State] = []
        for inside, group in groupby(members, lambda member: id(member) in rows):
            if inside:
                parts.append(self._select([rows[id(member)] for member in group]))
            else:
                parts += [member.memory.state for member in group if member.memory is not None]
        # a graph writes where it reads
        shared = self._graph is not None and len(parts) == 1
        state = parts[0] if len(parts) == 1 else join_states(parts)
        state = map_state(torch.clone, state) if shared else state
        for member in members:
            member.memory = None
        self._members, self._graph = list(members), None
        return state

    def _select(self, rows: list[int]) -> State:
        """The states of some sequences; of neighbours without a copy."""
        first, last = rows[0], rows[-1]
        if rows == list(range(first, last + 1)):
            return map_state(lambda tensor: tensor[:, first : last + 1], self._state)
        return select_state(self._state, rows)

    def _copy(self, row: int) -> Memory:
        hidden = None if self._hidden is None else self._hidden[row : row + 1].clone()
        return Memory(hidden, map_state(lambda tensor: tensor[:, row : row + 1].clone(), self._state))

    def _graph_of(self, sequences: int) -> StepGraph | None:
        """The step as a CUDA graph for at least so many sequences; None where there is none."""
        device = next(self._backbone.parameters()).device
        size = next((size for size in GRAPH_SIZES if size >= sequences), None)
        if device.type != "cuda" or not self._backbone.constant_state or size is None:
            return None
        if size not in self._graphs:
            try:
                self._graphs[size] = StepGraph(self._backbone, size)
            except RuntimeError as error:
                log.info("the step of %d sequences cannot be captured: %s", size, error)
                self._graphs[size] = None
        return self._graphs[size]


def step_all(runner: Runner, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One position of S sequences in one call."""
    return runner.step(x, state)


def step_as_row(runner: Runner, x: Tensor, state: State) -> tuple[Tensor, State]:
    """The same as a row of sequences of one position."""
    return runner.prefill(x, torch.arange(len(x) + 1, device=x.device), state)


Way = Callable[[Runner, Tensor, State], tuple[Tensor, State]]
WAYS: tuple[Way, ...] = (step_all, step_as_row)


def _seconds(way: Way, runner: Runner, x: Tensor, state: State) -> float:
    began = time.perf_counter()
    hidden, _ = way(runner, x, state)
    hidden.sum().item()  # waits for a device
    return time.perf_counter() - began
