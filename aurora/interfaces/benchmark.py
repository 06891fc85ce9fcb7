"""The contract of the `benchmark` slot: what a public benchmark asks, and how answers to it are scored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple


@dataclass(frozen=True)
class Item:
    """One question about one video, as a benchmark asks it. All of it can be written as JSON."""

    id: str  # unique in the benchmark
    video: str  # a path in the benchmark's folder; that of a folder of numbered JPEGs stands for 3 of them a second
    prompt: str  # the text that the model is given
    answer: str  # what an answer is compared with; of a choice, the text of the right option
    options: tuple[str, ...] = ()  # texts of a choice, in the order of their letters
    right: int | None = None  # index of the right option
    family: str = "all"  # the group that scores are given for
    at: float | None = None  # asked as of this second of the video: nothing that is shown later is seen
    start: float = 0.0  # seconds of the video; only what is shown in between is seen
    stop: float | None = None
    max_new_tokens: int = 128
    control: bool = False  # asked about a wrong video, and scored apart
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the scorer or a judge needs besides


class Items(NamedTuple):
    """What a folder asks, and which of its videos are not there."""

    items: tuple[Item, ...]
    missing: tuple[str, ...]


class Benchmark(ABC):
    """Reads a benchmark in the layout of its makers, and scores answers to it. Options say which part is asked."""

    scorers: ClassVar[Sequence[str]] = ("strict",)
    """The names that `score` takes; the first one makes the result, the others stand beside it."""
    judge: ClassVar[str | None] = None
    """How a language model judges the answers, such as "yes_no"; None where no judge is needed."""

    @abstractmethod
    def items(self, folder: Path) -> Items:
        """Every question that a folder asks, in a fixed order; no video is decoded.

        AuroraError that names the file and the record when an annotation makes no sense.
        """

    @abstractmethod
    def score(self, items: Sequence[Item], answers: Mapping[str, str | None], scorer: str) -> dict[str, Any]:
        """JSON with `score` (the headline: percent, or None where a judge must give it), `metric` (what it counts),
        `n`, and scores by family under `families`.

        `answers` holds an answer for the id of every item, None where it could not be asked.
        """

    def outcomes(self, items: Sequence[Item], answers: Mapping[str, str | None]) -> dict[str, float]:
        """What each item adds to the score, as a hundredth of it, by id; what does not belong to the score is left out.

        Intervals and comparisons of two runs are made of it. It is the score of an item alone unless overridden.
        """
        alone = {item.id: self.score([item], {item.id: answers[item.id]}, self.scorers[0])["score"]
                 for item in items if not item.control}
        return {id: score / 100 for id, score in alone.items() if score is not None}

    def weights(self, families: Sequence[str]) -> Mapping[str, float] | None:
        """What the mean of each family weighs in the score; None where every item counts alike."""
        return None
