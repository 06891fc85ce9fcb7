"""Scores of answers, and from predictions to numbers: accuracy by family, against chance and against wrong videos."""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torchmetrics.functional.text import bleu_score

from aurora.evaluation.predictions import Prediction, Shown, Task
from aurora.evaluation.questions import Question

Found = Mapping[tuple[str, Shown], Prediction]

# `(B)`, `(b) red`, `B)`, `B.`, `B: red`; a bare letter only when nothing follows, since "A" is also an article.
_LETTER = re.compile(r"\((?P<braced>[A-Za-z])\)|(?P<marked>[A-Z])[.):](?=\s|$)|(?P<bare>[A-Z])$")
_LEAD = re.compile(r"(?:the )?(?:best |correct )?(?:answer|option)(?: is)?\s*:?\s*", re.IGNORECASE)
_BRACED = re.compile(r"\(([A-Za-z])\)")


def chosen_option(answer: str, options: Sequence[str]) -> int | None:
    """The index of the option that an answer names, by its letter or by its whole text and nothing else; None when it
    names none, several, or one that does not exist."""
    text = answer.strip()
    lead = _LEAD.match(text)
    text = text[lead.end():] if lead else text
    match = _LETTER.match(text)
    if match is None:
        said = [index for index, option in enumerate(options) if _same(text, option)]
        return said[0] if len(said) == 1 else None
    letter = next(found for found in match.groups() if found).upper()
    named = {letter, *(other.upper() for other in _BRACED.findall(text))}
    index = ord(letter) - ord("A")
    return index if len(named) == 1 and index < len(options) else None


def _same(text: str, option: str) -> bool:
    """Whether two texts differ in nothing but case, white space and a closing full stop."""
    plain, wanted = (" ".join(part.casefold().split()).removesuffix(".") for part in (text, option))
    return plain == wanted != ""


def wilson(right: int, asked: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) when nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares them."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def exact_match(answer: str, truth: str) -> bool:
    """Whether the words are the same."""
    return words(answer) == words(truth)


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of the precision and recall of words."""
    given, wanted = words(answer), words(truth)
    shared = sum((Counter(given) & Counter(wanted)).values())
    if shared == 0:
        return float(given == wanted)
    return 2 * shared / (len(given) + len(wanted))


# ---- of all questions ---------------------------------------------------------------------------------------------


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


def _by_family(questions: Sequence[Question]) -> dict[str, list[Question]]:
    families: dict[str, list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda question: question.family):
        families[question.family].append(question)
    return dict(families)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
