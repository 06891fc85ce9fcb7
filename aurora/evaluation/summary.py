"""From predictions to numbers: accuracy by family, against chance and against wrong videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torchmetrics.functional.text import bleu_score

from aurora.evaluation.predictions import Prediction, Shown, Task
from aurora.evaluation.questions import Question
from aurora.evaluation.scoring import chosen_option, exact_match, token_f1, wilson

Found = Mapping[tuple[str, Shown], Prediction]


def summarise(questions: Sequence[Question], predictions: Mapping[Task, Prediction]) -> dict[str, Any]:
    """The result of an evaluation; a question that could not be asked or read counts as wrong."""
    found: Found = {(task.id, task.shown): prediction for task, prediction in predictions.items()}
    choices = [question for question in questions if question.options]
    opens = [question for question in questions if not question.options]
    failures = [prediction for prediction in found.values() if prediction.failure is not None]
    return {
        **_choices(choices, found),
        "unparsed": sum(_unparsed(question, found[question.id, "own"]) for question in choices),
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
    return {
        "n": len(questions),
        "accuracy": _mean(right),
        "low": low,
        "high": high,
        "chance": _mean([1 / len(question.options) for question in questions]),
        "wrong_video_accuracy": _mean(wrong),
    }


def _opens(questions: Sequence[Question], found: Found) -> dict[str, Any]:
    pairs = [(found[question.id, "own"].answer, question.answer) for question in questions]
    return {
        "n": len(questions),
        "exact_match": _mean([exact_match(*pair) for pair in pairs]),
        "token_f1": _mean([token_f1(*pair) for pair in pairs]),
        "bleu_1": corpus_bleu(pairs, words=1),
        "bleu_4": corpus_bleu(pairs, words=4),
    }


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


def _unparsed(question: Question, prediction: Prediction) -> bool:
    return prediction.failure is None and chosen_option(prediction.answer, question.options) is None


def _by_family(questions: Sequence[Question]) -> dict[str, list[Question]]:
    families: dict[str, list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda question: question.family):
        families[question.family].append(question)
    return dict(families)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
