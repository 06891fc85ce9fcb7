"""From predictions to numbers and their table: accuracy by family, against chance and against wrong videos."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torchmetrics.functional.text import bleu_score, squad

from aurora.evaluation.predictions import Prediction, Shown, Task
from aurora.evaluation.questions import Question
from aurora.evaluation.scoring import chosen_option
from aurora.terminal import table

SHOWN_FAILURES = 5

Found = Mapping[tuple[str, Shown], Prediction]
Row = Mapping[str, Any]


def wilson(right: int, asked: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) when nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def summarise(questions: Sequence[Question], predictions: Mapping[Task, Prediction]) -> dict[str, Any]:
    """The result of an evaluation; a question that could not be asked or read counts as wrong."""
    found: Found = {(task.id, task.shown): prediction for task, prediction in predictions.items()}
    choices = [question for question in questions if question.options]
    opens = [question for question in questions if not question.options]
    failures = [prediction for prediction in found.values() if prediction.failure is not None]
    return {
        **_choices(choices, found),
        "unparsed": sum(made.failure is None and chosen_option(made.answer, question.options) is None
                        for question, made in ((question, found[question.id, "own"]) for question in choices)),
        "failed": sum(prediction.shown == "own" for prediction in failures),
        "families": {name: _choices(group, found) for name, group in _by_family(choices).items()},
        "open": {**_opens(opens, found),
                 "families": {name: _opens(group, found) for name, group in _by_family(opens).items()}},
        "failures": [{"id": failed.id, "shown": failed.shown, "video": failed.video, "reason": failed.failure}
                     for failed in failures],
    }


def _choices(questions: Sequence[Question], found: Found) -> dict[str, Any]:
    right = [_is_right(question, found[question.id, "own"]) for question in questions]
    wrong = [_is_right(question, found[question.id, "wrong"]) for question in questions
             if (question.id, "wrong") in found]
    low, high = wilson(sum(right), len(right))
    return {"n": len(questions), "accuracy": _mean(right), "low": low, "high": high,
            "chance": _mean([1 / len(question.options) for question in questions]),
            "wrong_video_accuracy": _mean(wrong)}


def _opens(questions: Sequence[Question], found: Found) -> dict[str, Any]:
    pairs = [(found[question.id, "own"].answer, question.answer) for question in questions]
    return {"n": len(questions), **squad_scores(pairs), "bleu_1": corpus_bleu(pairs, words=1),
            "bleu_4": corpus_bleu(pairs, words=4)}


def squad_scores(pairs: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """Exact match and word F1 of (answer, truth) pairs, in [0, 1]; case, punctuation and articles do not count."""
    if not pairs:
        return {"exact_match": None, "token_f1": None}
    scores = squad([{"id": str(number), "prediction_text": answer} for number, (answer, _) in enumerate(pairs)],
                   [{"id": str(number), "answers": {"answer_start": [0], "text": [truth]}}
                    for number, (_, truth) in enumerate(pairs)])
    return {"exact_match": float(scores["exact_match"]) / 100, "token_f1": float(scores["f1"]) / 100}


def corpus_bleu(pairs: Sequence[tuple[str, str]], *, words: int) -> float | None:
    """BLEU over all (answer, truth) pairs with up to `words` words in a row; texts are split at white space.

    BLEU-1 is the column of VATEX in the paper's Table 2, there with a tokenizer of its own.
    """
    if not pairs:
        return None
    answers, truths = zip(*pairs, strict=True)
    return float(bleu_score(answers, [[truth] for truth in truths], n_gram=words))


def _is_right(question: Question, prediction: Prediction) -> bool:
    return chosen_option(prediction.answer, question.options) == question.right


def _by_family(questions: Sequence[Question]) -> dict[str, list[Question]]:
    family = attrgetter("family")
    return {name: list(group) for name, group in groupby(sorted(questions, key=family), family)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def render(result: Row) -> RenderableType:
    """Accuracy by family against chance and wrong videos, open questions below, failures last."""
    parts: list[RenderableType] = []
    if result["n"]:
        score = result.get("protocol", {}).get("score", "text").replace("_", " ")
        parts.append(_table(f"Multiple choice by {score}, in percent", _CHOICE, result,
                            caption="wrong video: asked about a video for which another answer is correct"))
    if result["open"]["n"]:
        parts.append(_table("Open questions", _OPEN, result["open"]))
    if result["unparsed"]:
        parts.append(Text(f"{result['unparsed']} of {result['n']} answers named no option and count as wrong."))
    failures = result["failures"]
    if failures:
        lines = [f"{len(failures)} questions could not be asked and count as wrong:"]
        lines += [f"  {failed['id']} ({failed['shown']} video {failed['video']}): {failed['reason']}"
                  for failed in failures[:SHOWN_FAILURES]]
        if len(failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(failures) - SHOWN_FAILURES} more")
        parts.append(Text("\n".join(lines), style="red"))
    return Group(*parts)


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: "–" if row[key] is None else f"{100 * row[key]:.1f}"


_CHOICE: Mapping[str, Callable[[Row], str]] = {
    "accuracy": _share("accuracy"), "95 % interval": lambda row: f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
    "chance": _share("chance"), "wrong video": _share("wrong_video_accuracy"),
}
_OPEN = {"exact match": _share("exact_match"), "word F1": _share("token_f1"), "BLEU-1": _share("bleu_1"),
         "BLEU-4": _share("bleu_4")}


def _table(title: str, columns: Mapping[str, Callable[[Row], str]], result: Row, caption: str | None = None) -> Table:
    """The families, and all of them together."""
    shown = table("family", "n", *columns, title=title)
    shown.caption, shown.caption_justify = caption, "left"
    for name, row in {**result["families"], "all": result}.items():
        if name == "all":
            shown.add_section()
        shown.add_row(name, str(row["n"]), *(cell(row) for cell in columns.values()),
                      style="bold" if name == "all" else "")
    return shown
