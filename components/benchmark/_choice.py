"""What benchmarks of multiple choice share: two scorers, and the mean over questions or over families."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aurora.errors import AuroraError, suggest
from aurora.evaluation.summary import accuracy, names_right_option
from aurora.interfaces import Benchmark, Item

from ._lmms import mean_by_family

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ChoiceBenchmark(Benchmark):
    """Scored by which option an answer names: `strict` as people write letters, `lmms_compat` as lmms-eval does."""

    scorers: ClassVar[Sequence[str]] = ("strict", "lmms_compat")
    mean_of: ClassVar[str] = "questions"  # or "families", which all count alike then

    def score(self, items: Sequence[Item], answers: Mapping[str, str | None], scorer: str) -> dict[str, Any]:
        if scorer not in self.scorers:
            raise AuroraError(f"no scorer named {scorer!r}.{suggest(scorer, self.scorers)}")
        if scorer == "lmms_compat":
            # there, what could not be asked is an empty answer
            return self._compat(items, [answers[item.id] or "" for item in items])
        found = accuracy(items, answers, self.judged)
        scores = {"metric": self._metric(), "score": self._mean(found), **found, **self.groups(found["families"])}
        if missing := [task for task in self.tasks() if task not in found["families"]]:
            scores |= {"score": None, "missing_tasks": missing,
                       "not_scored": f"no mean, for nothing was asked of {', '.join(missing)}"}
        return scores

    def outcomes(self, items: Sequence[Item], answers: Mapping[str, str | None]) -> dict[str, float]:
        return {item.id: float(bool(answers[item.id] is not None and self.judged(item, answers[item.id] or "")))
                for item in items if not item.control}

    def tasks(self) -> Sequence[str]:
        """The families whose mean is the score, which is none without all of them; empty where questions are counted.
        """
        return ()

    def weights(self, families: Sequence[str]) -> Mapping[str, float] | None:
        return None if self.mean_of == "questions" else dict.fromkeys(families, 1 / len(families))

    def judged(self, item: Item, answer: str) -> bool | None:
        """Whether an answer is right, strictly; None when it says nothing that could be."""
        return names_right_option(item, answer)

    def groups(self, families: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Means over groups of families, where the benchmark has them."""
        return {}

    @abstractmethod
    def compat(self, item: Item, answer: str) -> bool:
        """Whether lmms-eval counts an answer as right."""

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        """The number that lmms-eval reports, in its own unit."""
        return 100 * sum(right) / len(right) if right else 0

    def _compat(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        right = [self.compat(item, answer) for item, answer in zip(items, answers, strict=True)]
        families = mean_by_family([item.family for item in items], right, lambda correct, asked: correct / asked)
        reported = self.compat_score(items, answers, right)
        return {"metric": self._metric(), "score": reported * self.compat_unit, "lmms_eval": reported, "n": len(items),
                "families": {name: {"accuracy": share} for name, share in families.items()}}

    compat_unit: ClassVar[float] = 1.0  # 100 where lmms-eval reports a share instead of percent

    def _metric(self) -> str:
        return "accuracy, %" if self.mean_of == "questions" else f"mean accuracy of the {self.mean_of}, %"

    def _mean(self, found: Mapping[str, Any]) -> float | None:
        if self.mean_of == "questions":
            return None if found["accuracy"] is None else 100 * found["accuracy"]
        shares = [row["accuracy"] for row in found["families"].values()]
        return 100 * sum(shares) / len(shares) if shares else None


def with_letters(options: Sequence[str]) -> str:
    """ "(A) red\n(B) blue"."""
    return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
