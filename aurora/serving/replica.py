"""What a replica of another serving engine does: it has the model, opens films of a store that all replicas see, and
answers the questions of a batch in shared forward passes."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from aurora.errors import AuroraError
from aurora.inference.film import Film
from aurora.inference.generation import Generation
from aurora.inference.store import FilmStore
from aurora.inference.workers import WorkerModel

FILMS = 64
"""Films that a replica keeps in memory; of others it reads the file again."""


class Question(BaseModel):
    """A request: a question about a film of the store."""

    model_config = ConfigDict(extra="forbid")

    film: str = Field(min_length=1, max_length=1000)
    question: str = Field(min_length=1, max_length=100_000)
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def options(self) -> Generation:
        """How the answer is drawn."""
        return Generation(max_new_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p,
                          seed=self.seed)


class Replica:
    """A model, and the films that were asked about last."""

    def __init__(self, store: str | Path, model: WorkerModel) -> None:
        self.store, self.model = FilmStore(store), model.load()
        self._films: OrderedDict[str, tuple[tuple[int, int], Film]] = OrderedDict()
        self._lock = Lock()

    def film(self, name: str) -> Film:
        """A film of the store as it stands there now. AuroraError where there is none, or one of another model."""
        found = self.store.require(name).stat()
        stamp = (found.st_mtime_ns, found.st_size)
        with self._lock:
            held = self._films.get(name)
        film = held[1] if held is not None and held[0] == stamp else self.store.open(self.model, name)
        with self._lock:
            self._films[name] = stamp, film
            self._films.move_to_end(name)
            while len(self._films) > FILMS:
                self._films.popitem(last=False)
        return film

    def answer(self, asked: Sequence[tuple[Film, Question]]) -> list[dict[str, Any]]:
        """For every question its answer, or why there is none as `error`."""
        given: dict[int, dict[str, Any]] = {}
        order = sorted(range(len(asked)), key=lambda number: repr(asked[number][1].options))
        for options, group in groupby(order, key=lambda number: asked[number][1].options):
            numbers = list(group)
            pairs = [(asked[number][0], asked[number][1].question) for number in numbers]
            try:
                answers = self.model.answer_all(pairs, options)
            except AuroraError as error:
                given |= self._each(asked, numbers) if len(numbers) > 1 else {numbers[0]: {"error": str(error)}}
                continue
            given |= {number: {"film": asked[number][1].film, "answer": str(answer), "frames": answer.frames,
                               "seconds": answer.seconds} for number, answer in zip(numbers, answers, strict=True)}
        return [given[number] for number in range(len(asked))]

    def _each(self, asked: Sequence[tuple[Film, Question]], numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The same one by one, so that what is wrong with one is not the others' error."""
        return {number: self.answer([asked[number]])[0] for number in numbers}
