import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from aurora.errors import AuroraError
from aurora.files import room_for
from aurora.steps import START
from aurora.types import Position

from .rows import Skipped


@dataclass
class BadSamples:
    """Counts samples that became placeholders, lists them, and stops the run when they are too many.

    A run that is resumed begins to count anew, and goes on writing to the same list.
    """

    max_rate: float
    after: int  # samples to be seen before the rate says anything
    path: Path | None  # jsonl, one line for each; of several ranks each has its own beside it
    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.listed = self.path

    def begin(self, position: Position, rank: int, world: int) -> None:
        """A rank is about to read from a position on: it counts and lists from zero where that is the beginning."""
        if self.path is not None and world > 1:
            self.listed = self.path.with_name(f"{self.path.stem}-{rank}{self.path.suffix}")
        if position == START:
            self.seen = 0
            self.reasons.clear()
            if self.listed is not None:
                self.listed.unlink(missing_ok=True)

    def add(self, samples: int, skipped: list[Skipped]) -> None:
        """Counts a row of so many samples, skipped ones included."""
        self.seen += samples
        self.reasons.update(sample.reason for sample in skipped)
        if skipped and self.listed is not None:
            self.listed.parent.mkdir(parents=True, exist_ok=True)
            with room_for(self.listed), self.listed.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for sample in skipped)
        if self.seen >= self.after and self.reasons.total() > self.max_rate * self.seen:
            last = f"; the last was {skipped[-1].dataset}/{skipped[-1].key}: {skipped[-1].detail}" if skipped else ""
            raise AuroraError(f"data: {self.summary()}, more than max_bad_rate {self.max_rate}{last}")

    def summary(self) -> str:
        """How many are bad, and of what."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.reasons.total()} of {self.seen} samples are bad" + (f" ({counts})" if counts else "")
