"""Continuous batching: one thread owns the runner, and every pass of it packs what waits into one forward.

A pass holds one token of every answer that is being made, parts of questions that are read, and a part of one film
that is watched. Questions go first, within `QUESTION_TOKENS`; films are not left out of more than `FILM_PATIENCE`
passes, and get little enough at a time that a question never waits long for the pass that it comes too late for.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from aurora.errors import AuroraError
from aurora.inference.generation import Generation, TextStream, next_tokens
from aurora.inference.reading import Memory
from aurora.interfaces import Runner
from aurora.model import AuroraModel
from aurora.serving.answer import Answer, DeadlineExceeded, Passage, QueueFull
from aurora.serving.batch import Batch, Member

log = logging.getLogger(__name__)

QUESTION_TOKENS = 1024
"""Positions of questions in one pass, over all of them."""

FILM_TOKENS = 64
"""A film's part in one pass is a multiple of it."""

FILM_SECONDS = 0.03
"""A pass with a part of a film should take at most so long, and at most twice as long as one that reads no more than a
question has."""

FILM_PATIENCE = 4
"""Passes in a row that leave films out while questions are read."""


class Engine:
    """Answers questions and reads films with one model. `close` ends its thread."""

    def __init__(self, model: AuroraModel, runner: Runner, *, max_sequences: int = 32, max_waiting: int = 128) -> None:
        self.model, self.runner = model, runner
        self.max_sequences, self.max_waiting = max_sequences, max_waiting
        self.counts = {"passes": 0, "generated_tokens": 0, "question_tokens": 0, "film_tokens": 0}
        self._batch = Batch(runner)
        self._device = next(runner.backbone.parameters()).device
        self._waiting: deque[Answer] = deque()
        self._active: list[Answer] = []
        self._films: deque[Passage] = deque()
        self._without_film = 0
        self._film_rate = 0.0  # tokens per second in passes that hold a film
        self._short_seconds = 0.0  # of passes that read no more than `FILM_TOKENS` positions
        self._changed = threading.Condition()
        self._closed = False
        self._news: list[tuple[Answer, str, bool, Exception | None]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def answering(self) -> int:
        """Answers being made."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Questions that no pass has read yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether questions are answered at all."""
        return self._thread.is_alive() and not self._closed

    def ask(self, memory: Memory, ids: Sequence[int], options: Generation, *, seconds: float | None = None) -> Answer:
        """An answer after `ids` are read behind a memory of one sequence. Called in an event loop. QueueFull when too
        many wait; DeadlineExceeded comes after so many `seconds`."""
        if not ids:
            raise ValueError("a question has at least one token")
        text = TextStream(self.model.tokenizer, (self.model.prompt.stop,), options.stop)
        answer = Answer(memory, ids, options, text, seconds)
        with self._changed:
            if self._closed:
                raise QueueFull("the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise QueueFull(f"{self.max_waiting} questions are waiting already; try again later")
            self._waiting.append(answer)
            self._changed.notify()
        return answer

    def prefill(self, memory: Memory, x: Tensor) -> Memory:
        """What one sequence has read after x [T, D] too; blocks, and may be called from any thread."""
        passage = Passage(memory, x)
        with self._changed:
            if self._closed:
                raise AuroraError("the engine was closed")
            self._films.append(passage)
            self._changed.notify()
        return passage.read.result()

    def close(self) -> None:
        """Ends the thread; what is not finished fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._active or self._films):
                    self._changed.wait()
                if self._closed:
                    break
                self._admit()
            try:
                self._pass()
            except Exception as error:  # whoever asked is told, and the next pass begins afresh
                log.exception("a forward pass failed")
                self._fail(error)
            self._deliver()
        self._fail(AuroraError("the server was shut down before this was finished"))
        self._deliver()

    def _admit(self) -> None:
        """Takes waiting questions in, and lets go of those that nobody waits for, or whose time is over."""
        now = time.monotonic()
        for answers in (self._active, self._waiting):
            for answer in [one for one in answers if one.cancelled or (one.deadline or now) < now]:
                answers.remove(answer)
                self._end(answer, error=None if answer.cancelled else DeadlineExceeded("the answer took too long"))
        while self._waiting and len(self._active) < self.max_sequences:
            self._active.append(self._waiting.popleft())

    @torch.inference_mode()
    def _pass(self) -> None:
        """One forward of whoever has something to read."""
        began = time.monotonic()
        self.counts["passes"] += 1
        answering = [answer for answer in self._active if not answer.ids]
        reading, parts = self._parts_of_questions()
        film = self._next_film(bool(reading))
        members: list[Member] = [*answering, *reading]
        if not reading and film is None:
            if answering:
                tokens = torch.tensor([answer.token for answer in answering], device=self._device)
                self._sample(answering, self._batch.step(members, tokens))
            return
        ids = [*([answer.token] for answer in answering), *parts]
        rows = list(torch.split(self._embed(ids), [len(row) for row in ids])) if ids else []
        size = self._film_part()
        if film is not None:
            members, rows = [*members, film], [*rows, film.x[:size]]
        hidden = self._batch.read(members, rows)
        due = [(row, answer) for row, answer in enumerate([*answering, *reading]) if not answer.ids]
        if due:
            at = slice(len(due)) if due[-1][0] == len(due) - 1 else [row for row, _ in due]
            self._sample([answer for _, answer in due], self.runner.backbone.logits(hidden[at]))
        elif self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        seconds = time.monotonic() - began
        if sum(map(len, rows)) <= FILM_TOKENS:
            self._short_seconds = _smooth(self._short_seconds, seconds)
        if film is not None:
            if len(rows[-1]) == size:  # the last part of a passage, which is shorter, costs more per token
                self._film_rate = _smooth(self._film_rate, size / seconds)
            self._advance(film, len(rows[-1]))

    def _parts_of_questions(self) -> tuple[list[Answer], list[list[int]]]:
        """The questions that are read in this pass, in the order in which they came, and what is read of each."""
        left, reading, parts = QUESTION_TOKENS, [], []
        for answer in self._active:
            if answer.ids and left:
                part, answer.ids = answer.ids[:left], answer.ids[left:]
                left -= len(part)
                reading.append(answer)
                parts.append(part)
        self.counts["question_tokens"] += QUESTION_TOKENS - left
        return reading, parts

    def _next_film(self, reading: bool) -> Passage | None:
        """The film whose turn it is, if one may take part in this pass."""
        if not self._films or (reading and self._without_film < FILM_PATIENCE):
            self._without_film += 1
            return None
        self._without_film = 0
        return self._films[0]

    def _film_part(self) -> int:
        """Tokens of a film for one pass."""
        seconds = min(FILM_SECONDS, 2 * self._short_seconds)
        return max(1, int(self._film_rate * seconds / FILM_TOKENS)) * FILM_TOKENS

    def _advance(self, film: Passage, tokens: int) -> None:
        """A film has read so many tokens; the next one's turn comes."""
        film.x = film.x[tokens:]
        self.counts["film_tokens"] += tokens
        self._films.popleft()
        if len(film.x):
            self._films.append(film)
        else:
            film.read.set_result(self._batch.memory(film))
            film.ended = True

    def _embed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        return self.runner.backbone.embed(torch.tensor(list(chain.from_iterable(ids)), device=self._device))

    def _sample(self, answers: Sequence[Answer], logits: Tensor) -> None:
        """Gives each answer its next token; those that end leave the batch, as does one that has none."""
        options, generators = [one.options for one in answers], [one.generator for one in answers]
        try:
            tokens = next_tokens(logits, options, generators).tolist()
        except ArithmeticError as error:
            if len(answers) > 1:
                for row, answer in enumerate(answers):
                    self._sample([answer], logits[row : row + 1])
                return
            self._active.remove(answers[0])
            self._end(answers[0], error=error)
            return
        for answer, token in zip(answers, tokens, strict=True):
            answer.token = token
            answer.tokens += 1
            piece = answer.text.push(token)
            ended = answer.text.stopped or answer.tokens == answer.options.max_new_tokens
            if ended:
                piece += answer.text.finish()
                answer.finish_reason = "stop" if answer.text.stopped else "length"
                self._active.remove(answer)
                self._end(answer, piece)
            elif piece:
                self._news.append((answer, piece, False, None))
        self.counts["generated_tokens"] += len(answers)

    def _end(self, answer: Answer, piece: str = "", error: Exception | None = None) -> None:
        answer.ended = True
        self._news.append((answer, piece, True, error))

    def _fail(self, error: Exception) -> None:
        """Everything that is being read or answered ends with the error."""
        with self._changed:
            answers = [*self._active, *(self._waiting if self._closed else ())]
            films, self._active = [*self._films], []
            self._films.clear()
        for answer in answers:
            self._end(answer, error=error)
        for film in films:
            film.read.set_exception(error)
        self._batch.clear()

    def _deliver(self) -> None:
        """Wakes each event loop once for all that a pass has made."""
        news, self._news = self._news, []
        for loop in {answer.loop for answer, *_ in news}:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_receive, [item for item in news if item[0].loop is loop])


def _smooth(before: float, now: float) -> float:
    """What was measured, as a moving average; 0 before the first."""
    return before + (now - before) * (0.2 if before else 1.0)


def _receive(news: Sequence[tuple[Answer, str, bool, Exception | None]]) -> None:
    for answer, piece, done, error in news:
        answer.receive(piece, done, error)
