"""What benchmarks share whose answers are open: judged by a language model, or compared with a text or captions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aurora.errors import AuroraError
from aurora.evaluation.summary import accuracy, text_overlap
from aurora.interfaces import Benchmark, Item

_NAMES = {"bleu_1": "BLEU-1", "cider": "CIDEr"}


class JudgedBenchmark(Benchmark):
    """Scored by `aurora judge`: until then it is only counted what was asked."""

    judge: ClassVar[str | None] = "yes_no"

    def score(self, items: Sequence[Item], answers: Mapping[str, str | None], scorer: str) -> dict[str, Any]:
        families = Counter(item.family for item in items)
        return {"metric": "judged accuracy, %", "score": None, "n": len(items),
                "empty": sum(answer == "" for answer in answers.values()),
                "families": {name: {"n": families[name]} for name in sorted(families)}}


class MixedBenchmark(Benchmark):
    """Choices are scored by accuracy, and open questions apart by what their answers share with the right ones; the
    latter make the score, as word F1, where there are no choices."""

    def score(self, items: Sequence[Item], answers: Mapping[str, str | None], scorer: str) -> dict[str, Any]:
        choices = accuracy([item for item in items if item.options], answers)
        opens = text_overlap([item for item in items if not item.options], answers)
        share, metric = (choices["accuracy"], "accuracy, %") if choices["n"] else (opens["token_f1"], "word F1, %")
        return {"metric": metric, "score": None if share is None else 100 * share, **choices, "open": opens}

    def outcomes(self, items: Sequence[Item], answers: Mapping[str, str | None]) -> dict[str, float]:
        return super().outcomes([item for item in items if item.options] or items, answers)


class CaptionBenchmark(Benchmark):
    """Scored by comparing captions with all references of their video."""

    main: ClassVar[str] = "cider"  # the metric that makes the score

    def score(self, items: Sequence[Item], answers: Mapping[str, str | None], scorer: str) -> dict[str, Any]:
        from aurora.evaluation.captions import caption_metrics

        about: dict[str, Any] = {"metric": f"{_NAMES[self.main]}, %", "score": None, "n": len(items), "families": {}}
        try:
            scores = caption_metrics({item.id: (answers[item.id] or "", item.extra["references"]) for item in items})
        except AuroraError as error:  # without pycocoevalcap: the captions are there, and can be scored later
            return {**about, "not_scored": str(error)}
        metrics = {name: value for name, value in vars(scores).items() if name not in ("items", "intervals")}
        intervals = {name: interval and list(interval) for name, interval in scores.intervals.items()}
        return {**about, "score": 100 * metrics[self.main], "captions": {**metrics, "intervals": intervals}}

    def outcomes(self, items: Sequence[Item], answers: Mapping[str, str | None]) -> dict[str, float]:
        """The metric of each caption; of BLEU, which is one of all captions together, that of each alone."""
        from aurora.evaluation.captions import caption_metrics

        scores = caption_metrics({item.id: (answers[item.id] or "", item.extra["references"]) for item in items},
                                 resamples=1)
        return {id: row[self.main] for id, row in scores.items.items()}
