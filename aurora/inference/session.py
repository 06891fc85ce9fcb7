"""Questions about what was seen: a video of any length is read into a state of constant size."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.inference.generation import Generation, complete, stream
from aurora.inference.reading import (
    FRAMES_PER_CHUNK,
    Memory,
    blank,
    fork,
    read_frames,
    read_texts,
    tokenize,
)
from aurora.inference.visuals import frames_of
from aurora.interfaces import Sampling, Turn, VideoReader
from aurora.markers import plain_question
from aurora.model import AuroraModel
from aurora.registry import READER
from aurora.types import State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """The memory right after the visual tokens, and the text that was read before them."""

    leading: tuple[int, ...]
    memory: Memory
    frames: int


class Session:
    """One model looking at one video, or at several images, and asked about them. Its weights stay as they are.

    A question is answered from the state after the video when the text before the video is the same as last time
    (prompts `generic` and `image_first`); otherwise the video is read again with the new question in front of it.
    """

    def __init__(
        self,
        model: AuroraModel,
        *,
        keep_ratio: float = 0.1,
        sampling: Sampling | None = None,
        reader: VideoReader | None = None,
        frames_per_chunk: int = FRAMES_PER_CHUNK,
        on_frame: Callable[[int], None] | None = None,
    ) -> None:
        if frames_per_chunk < 1:
            raise AuroraError(f"frames_per_chunk {frames_per_chunk} must be 1 or more")
        self.model = model
        self.runner = model.backbone.runner()
        if self.runner.reason:
            log.info("the modules of the backbone are called: %s", self.runner.reason)
        self.layout = model.visual_layout(keep_ratio)
        self.sampling = sampling or Sampling(fps=1.0)
        self.reader = reader or READER.build({"name": "pyav"})
        self.frames_per_chunk = frames_per_chunk
        self.on_frame = on_frame
        self.sources: tuple[str, ...] = ()
        self.turns: tuple[Turn, ...] = ()
        self.seen: Seen | None = None

    @classmethod
    def from_config(cls, model: AuroraModel, config: ModelConfig, **options: Any) -> Session:
        """A session with the keep ratio, the sampling and the reader of a config."""
        return cls(model, keep_ratio=config.keep_ratio, sampling=config.sampling, reader=READER.build(config.reader),
                   **options)

    def watch(self, *sources: str | Path) -> None:
        """Sets what the questions are about, in this order; files are opened when the first question is asked."""
        self.sources, self.turns, self.seen = tuple(str(source) for source in sources), (), None

    def ask(self, question: str, options: Generation | None = None, *, remember: bool = False) -> Iterator[str]:
        """The answer in pieces, as it is made. With `remember` the exchange becomes part of the conversation."""
        question = plain_question(question, seen=bool(self.sources))
        memory = self._read((*self.turns, Turn(question)))
        said = []
        for piece in stream(self.model, self.runner, memory, options or Generation()):
            said.append(piece)
            yield piece
        if remember:
            self.turns = (*self.turns, Turn(question, "".join(said)))

    def read_all(self, questions: Sequence[str]) -> Memory:
        """The memory [S] after each of S questions about the same video, whose frames are decoded and encoded once.

        Questions whose prompts begin alike share one state until the video ends.
        """
        turns = [Turn(plain_question(text, seen=True)) for text in questions]
        pieces = [tokenize(self.model.tokenizer, self.model.prompt.layout([turn], visual=True)) for turn in turns]
        leadings = list(dict.fromkeys(piece.leading for piece in pieces))
        after, _ = self._look(leadings)
        each = fork(after, [leadings.index(piece.leading) for piece in pieces])
        return read_texts(self.runner, each, [piece.trailing for piece in pieces])

    def answer_all(self, questions: Sequence[str], options: Generation | None = None) -> list[str]:
        """The answers to many questions about the same video, generated side by side."""
        return complete(self.model, self.runner, self.read_all(questions), options or Generation())

    def fork(self) -> Session:
        """A second session that goes on from here; what one is asked the other does not know."""
        return copy(self)

    def save(self, path: str | Path) -> None:
        """Writes what was seen and said; its size does not depend on the length of the video, unless the backbone is a
        transformer."""
        if self.seen is None:
            raise AuroraError("the session has seen nothing to save; ask a question first")
        about = {"leading": self.seen.leading, "frames": self.seen.frames, "sources": self.sources, "turns": self.turns}
        tensors = {f"state.{name}": tensor.contiguous() for name, tensor in self.seen.memory.state.items()}
        if self.seen.memory.hidden is not None:
            tensors["hidden"] = self.seen.memory.hidden.contiguous()
        save_file(tensors, path, metadata={"session": json.dumps(about)})

    def load(self, path: str | Path) -> None:
        """Goes on from what `save` wrote. AuroraError when it is broken or of another model."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                about = json.loads((file.metadata() or {})["session"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise AuroraError(f"{path} is not a saved session: {error}") from error
        wanted = blank(self.runner, 1).state
        state = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name != "hidden"}
        if self._shapes(state) != self._shapes(wanted):
            raise AuroraError(f"{path} is a session of another model: its state has other names or shapes")
        state = {name: tensor.to(wanted[name]) for name, tensor in state.items()}
        hidden = tensors.get("hidden")
        device = next(self.model.backbone.parameters()).device
        memory = Memory(None if hidden is None else hidden.to(device), state)
        self.seen = Seen(tuple(about["leading"]), memory, about["frames"])
        self.sources = tuple(about["sources"])
        self.turns = tuple(Turn(question, answer) for question, answer, *_ in about["turns"])

    def _shapes(self, state: State) -> dict[str, tuple[int, ...]]:
        """The shapes that any state of the model has; memory that grows does so in its third dimension."""
        grows = not self.model.backbone.constant_state
        return {name: (*t.shape[:2], *t.shape[3:]) if grows else tuple(t.shape) for name, t in state.items()}

    def _read(self, turns: Sequence[Turn]) -> Memory:
        visual = bool(self.sources)
        pieces = tokenize(self.model.tokenizer, self.model.prompt.layout(turns, visual=visual))
        if not visual:
            return read_texts(self.runner, blank(self.runner, 1), [pieces.leading])
        if self.seen is None or self.seen.leading != pieces.leading:
            self.seen = Seen(pieces.leading, *self._look([pieces.leading]))
        return read_texts(self.runner, self.seen.memory, [pieces.trailing])

    def _look(self, leadings: Sequence[Sequence[int]]) -> tuple[Memory, int]:
        """What is watched, read after each of the given beginnings, and its number of frames."""
        number = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal number
            for frame in frames_of(self.sources, self.sampling, self.reader):
                number += 1
                if self.on_frame is not None:
                    self.on_frame(number)
                yield frame

        before = read_texts(self.runner, blank(self.runner, len(leadings)), leadings)
        after = read_frames(self.model, self.runner, before, counted(), self.layout,
                            frames_per_chunk=self.frames_per_chunk)
        return after, number
