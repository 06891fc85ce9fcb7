"""One answer that is being made, and one part of a film that is being read, as the engine and those who wait for them
know them.

Shape letters: T positions, D backbone width.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Literal

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.inference.generation import Generation, TextStream
from aurora.inference.reading import Memory
from aurora.serving.batch import Member


class QueueFull(AuroraError):
    """So many questions wait that another one is refused."""


class DeadlineExceeded(AuroraError):
    """An answer was not finished in time."""


class Passage(Member):
    """A part of a film that is being read."""

    def __init__(self, memory: Memory, x: Tensor) -> None:
        super().__init__(memory)
        self.x = x  # [T, D], what is left of it
        self.read: Future[Memory] = Future()


class Answer(Member):
    """One answer being made: iterate over its text, then see `finish_reason`. Leaving the loop early cancels it."""

    def __init__(self, memory: Memory, ids: Sequence[int], options: Generation, text: TextStream, seconds: float | None
                 ) -> None:
        super().__init__(memory)
        self.prompt_tokens = len(ids)
        self.tokens = 0  # made so far
        self.warnings: list[str] = []  # of what it is about
        self.finish_reason: Literal["stop", "length"] | None = None
        self.cancelled = False
        # of the engine's thread
        self.ids = list(ids)  # what is left to read of the question
        self.token = 0  # the last one made, read next
        self.options, self.text = options, text
        self.generator = torch.Generator().manual_seed(options.seed)
        self.deadline = None if seconds is None else time.monotonic() + seconds
        # of the event loop
        self.loop = asyncio.get_running_loop()
        self._given: list[str] = []
        self._begun = False
        self._done = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    async def pieces(self) -> AsyncIterator[str]:
        """The text without white space before it, in pieces that are final; DeadlineExceeded, or the engine's error."""
        try:
            while not (self._done and not self._given):
                await self._news.wait()
                self._news.clear()
                piece, self._given = "".join(self._given), []
                piece = piece if self._begun else piece.lstrip()
                if piece:
                    self._begun = True
                    yield piece
            if self._error is not None:
                raise self._error
        finally:
            self.cancel()

    async def whole(self) -> str:
        """All of the text."""
        return "".join([piece async for piece in self.pieces()])

    def cancel(self) -> None:
        """Nothing more is made; does nothing to a finished answer."""
        self.cancelled = True

    def receive(self, piece: str, done: bool, error: Exception | None) -> None:
        """In the event loop: what the engine has for the reader."""
        self._given.append(piece)
        self._done, self._error = self._done or done, error
        self._news.set()
