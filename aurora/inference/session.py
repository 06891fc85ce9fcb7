"""Questions about what was seen: a video of any length is read into a state of constant size."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.inference.generation import Generation, complete, stream
from aurora.inference.reading import Memory, blank, fork, read_frames, read_texts, tokenize
from aurora.inference.visuals import check_file, frames_of, is_image
from aurora.interfaces import Sampling, Turn, VideoReader
from aurora.markers import plain_question
from aurora.model import AuroraModel
from aurora.registry import READER
from aurora.types import State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What was read before the visual tokens, and the memory right after them.

    Where `final`, whatever is asked is answered from it: it was loaded, and what was watched may be gone.
    """

    leadings: Sequence[tuple[int, ...]]
    memory: Memory  # of as many sequences
    final: bool = False


class Session:
    """One model looking at one video, or at several images, and asked about them. Its weights stay as they are.

    `watch` says what is looked at, `ask` answers a question about it. A question is answered from the state after the
    video when the text before the video is the same as last time (prompts `generic` and `image_first`); otherwise the
    video is read again with the new question in front of it. `answer_all` and `ask_each` read it once for many
    questions. `save` writes the state, and a session that was loaded from it answers without the video.

    `on_frame` is called for every frame that is read: with its source, its number from 1, and the seconds at which the
    frames of the source are shown, none for an image. Whatever does not fit is an AuroraError.
    """

    def __init__(
        self,
        model: AuroraModel,
        *,
        keep_ratio: float = 0.1,
        sampling: Sampling | None = None,
        reader: VideoReader | None = None,
        on_frame: Callable[[str, int, Sequence[float]], None] | None = None,
    ) -> None:
        _require("model", model, AuroraModel)
        self.model = model
        self.runner = model.backbone.runner()
        if self.runner.reason:
            log.info("the modules of the backbone are called: %s", self.runner.reason)
        self.layout = model.visual_layout(keep_ratio)
        self.sampling = Sampling(fps=1.0) if sampling is None else _require("sampling", sampling, Sampling)
        self.reader = READER.build({"name": "pyav"}) if reader is None else _require("reader", reader, VideoReader)
        self.on_frame = on_frame
        self.sources: tuple[str, ...] | None = None
        self.turns: tuple[Turn, ...] = ()
        self.seen: Seen | None = None

    @classmethod
    def from_config(cls, model: AuroraModel, config: ModelConfig, **options: Any) -> "Session":
        """A session with the keep ratio, the sampling and the reader of a config, where `options` of the constructor
        do not give another one."""
        return cls(model, **{"keep_ratio": config.keep_ratio, "sampling": config.sampling,
                             "reader": READER.build(config.reader), **options})

    def watch(self, *sources: str | Path) -> None:
        """Sets what the questions are about, in this order: paths of videos and images, which are read when the first
        question is asked. Without any, questions are about nothing but what was said.

        UnreadableVisual for a file that is missing or empty.
        """
        for source in sources:
            _require("what is watched", source, str, os.PathLike)
            check_file(source)
        self.sources, self.turns, self.seen = tuple(str(source) for source in sources), (), None

    def ask(self, question: str, options: Generation | None = None, *, remember: bool = False) -> Iterator[str]:
        """Reads the question, and what is watched where that is not read yet, and gives the answer in pieces, as it is
        made, without white space before it. With `remember` the exchange becomes part of the conversation."""
        options, turn = _generation(options), self._turn(question)
        return self._answer(turn, self._read([(*self.turns, turn)]), options, remember)

    def _answer(self, turn: Turn, memory: Memory, options: Generation, remember: bool) -> Iterator[str]:
        said = []
        for piece in stream(self.model, self.runner, memory, options):
            said.append(piece)
            yield piece
        if remember:
            self.turns = (*self.turns, turn._replace(answer="".join(said)))

    def ask_each(self, questions: Sequence[str], options: Generation | None = None) -> Iterator[Iterator[str]]:
        """The answers to many questions about the same video one after the other, each in pieces; the video is decoded
        and encoded once."""
        memory, options = self.read_all(questions), _generation(options)
        for number in range(len(questions)):
            yield stream(self.model, self.runner, fork(memory, [number]), options)

    def read_all(self, questions: Sequence[str]) -> Memory:
        """The memory [S] after each of S questions about the same video, whose frames are decoded and encoded once.

        Questions whose prompts begin alike share one state until the video ends.
        """
        return self._read([(self._turn(question),) for question in questions])

    def answer_all(self, questions: Sequence[str], options: Generation | None = None) -> list[str]:
        """The answers to many questions about the same video, generated side by side."""
        return complete(self.model, self.runner, self.read_all(questions), _generation(options))

    def fork(self) -> "Session":
        """A second session that goes on from here; what one is asked the other does not know."""
        return copy(self)

    def save(self, path: str | Path) -> None:
        """Writes what was seen and said; its size does not depend on the length of the video, unless the backbone is a
        transformer."""
        if self.seen is None:
            raise AuroraError("the session has seen nothing to save; ask a question first")
        about = {"leading": self.seen.leadings[0], "sources": self.sources, "turns": self.turns}
        tensors = {f"state.{name}": tensor.contiguous() for name, tensor in self.seen.memory.state.items()}
        if self.seen.memory.hidden is not None:
            tensors["hidden"] = self.seen.memory.hidden.contiguous()
        save_file(tensors, path, metadata={"session": json.dumps(about)})

    def load(self, path: str | Path) -> None:
        """Goes on from what `save` wrote. What was watched is not read again: a prompt that begins with the question
        finds the one there that was asked before saving. AuroraError when the file is broken or of another model."""
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
        self.seen = Seen([tuple(about["leading"])], memory, final=True)
        self.sources = tuple(about["sources"])
        self.turns = tuple(Turn(question, answer) for question, answer, *_ in about["turns"])

    def _shapes(self, state: State) -> dict[str, tuple[int, ...]]:
        """The shapes that any state of the model has; memory that grows does so in its third dimension."""
        grows = not self.model.backbone.constant_state
        return {name: (*t.shape[:2], *t.shape[3:]) if grows else tuple(t.shape) for name, t in state.items()}

    def _turn(self, question: str) -> Turn:
        if self.sources is None:
            raise AuroraError("nothing was watched yet: call watch(FILE) first, or watch() to ask about nothing seen")
        if not _require("the question", question, str).strip():
            raise AuroraError("the question is empty")
        return Turn(plain_question(question, len(self.sources)))

    def _read(self, conversations: Sequence[Sequence[Turn]]) -> Memory:
        """The memory [S] after each of S conversations."""
        pieces = [tokenize(self.model.tokenizer, self.model.prompt.layout(turns, visual=bool(self.sources)))
                  for turns in conversations]
        leadings = list(dict.fromkeys(piece.leading for piece in pieces))
        seen = self.seen
        if seen is None or not (seen.final or seen.leadings == leadings):
            self.seen = None  # not two at once
            before = read_texts(self.runner, blank(self.runner, len(leadings)), leadings)
            frames = chain.from_iterable(map(self._frames, self.sources or ()))
            seen = Seen(leadings, read_frames(self.model, self.runner, before, frames, self.layout))
            self.seen = seen if len(leadings) == 1 else None  # many would be held while answers are made
        places = [0 if seen.final else leadings.index(piece.leading) for piece in pieces]
        return read_texts(self.runner, fork(seen.memory, places), [piece.trailing for piece in pieces])

    def _frames(self, source: str) -> Iterator[np.ndarray]:
        times = [] if self.on_frame is None or is_image(source) else self.reader.times(source, self.sampling)
        for number, frame in enumerate(frames_of([source], self.sampling, self.reader), 1):
            if self.on_frame is not None:
                self.on_frame(source, number, times)
            yield frame


def _generation(options: Generation | None) -> Generation:
    return Generation() if options is None else _require("options", options, Generation)


def _require(what: str, given: Any, *kinds: type[Any]) -> Any:
    """The value. AuroraError when it is of none of these kinds."""
    if not isinstance(given, kinds):
        raise AuroraError(f"{what} must be {' or '.join(kind.__name__ for kind in kinds)}, not "
                          f"{type(given).__name__}")
    return given
