"""Steps of generation: each sequence reads one token, and its next logits follow.

Shape letters: S sequences, V vocabulary, D backbone width.
"""

import logging
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from aurora.inference.graphs import addresses, capture
from aurora.inference.reading import Memory, fork
from aurora.interfaces import Backbone, Runner
from aurora.types import State, map_state

log = logging.getLogger(__name__)

WARM_UP = 8
"""Steps before a graph is captured: an answer of a word or a letter is over by then."""


class StepGraph:
    """The step of S sequences and its logits as one CUDA graph: a launch per token instead of a thousand.

    Reads and writes memory of its own: the state is copied in once, and advances there.
    """

    def __init__(self, backbone: Backbone, sequences: int) -> None:
        self._backbone = backbone
        device = next(backbone.parameters()).device
        self.tokens = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.state: State = map_state(torch.clone, backbone.init_state(sequences))
        self.holder: Callable[[], Steps | None] = lambda: None  # who still answers from the memory of this graph
        self._weights = addresses(backbone)
        self._graph, (self._hidden, self._logits) = capture(self._step, device)

    def fits(self, backbone: Backbone, sequences: int) -> bool:
        """Whether it was captured for so many sequences, and the weights still lie where they lay."""
        return len(self.tokens) == sequences and self._weights == addresses(backbone)

    def load(self, state: State) -> None:
        """The sequences go on from this state; where it is of fewer, what the last ones read does not matter."""
        for name, tensor in state.items():
            self.state[name][:, : tensor.shape[1]].copy_(tensor)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[S] → the hidden states [S, D] and logits [S, V], which the next call overwrites."""
        self.tokens.copy_(tokens)
        self._graph.replay()
        return self._hidden, self._logits

    def _step(self) -> tuple[Tensor, Tensor]:
        hidden, after = self._backbone.step(self._backbone.embed(self.tokens), self.state)
        logits = self._backbone.logits(hidden)
        self.load(after)
        return hidden, logits


class Steps:
    """What S sequences remember while they are answered, a token at a time."""

    def __init__(self, runner: Runner, memory: Memory) -> None:
        self._runner = runner
        self._backbone = runner.backbone
        self._memory = memory
        self._read = 0
        self._graph: StepGraph | None = None
        self.logits: Tensor = self._backbone.logits(memory.last_hidden())
        """[S, V]: what each sequence says next; the next call of `read` may overwrite it."""

    def read(self, tokens: Tensor) -> None:
        """Every sequence reads its token: [S]."""
        self._read += 1
        if self._graph is None and self._read > WARM_UP:
            self._graph = self._take_graph()
        if self._graph is None:
            self._memory = Memory(*self._runner.step(self._backbone.embed(tokens), self._memory.state))
            self.logits = self._backbone.logits(self._memory.last_hidden())
        else:
            hidden, self.logits = self._graph.read(tokens)
            self._memory = Memory(hidden, self._graph.state)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these sequences go on."""
        self._memory = fork(self._memory, rows)
        self.logits = self.logits[list(rows)]
        self._graph = None
        self._read = 0

    def _take_graph(self) -> StepGraph | None:
        """One that goes on from here; None where there is no CUDA, or the step cannot be captured.

        The last graph of each backbone is kept, since most answers are of as many sequences as the one before.
        """
        device = next(self._backbone.parameters()).device
        if device.type != "cuda" or not self._backbone.constant_state:
            return None
        graph = _graphs.get(self._backbone)
        if graph is None or graph.holder() is not None or not graph.fits(self._backbone, self._memory.sequences):
            try:
                graph = _graphs[self._backbone] = StepGraph(self._backbone, self._memory.sequences)
            except RuntimeError as error:
                log.info("the step of %s cannot be captured: %s", type(self._backbone).__name__, error)
                return None
        graph.holder = ref(self)
        graph.load(self._memory.state)
        return graph


_graphs: WeakKeyDictionary[Backbone, StepGraph] = WeakKeyDictionary()
