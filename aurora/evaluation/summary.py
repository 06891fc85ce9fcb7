"""From answers to numbers and their table: accuracy by family, against chance and against wrong videos."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torchmetrics.functional.text import bleu_score, squad

from aurora.evaluation.scoring import chosen_option
from aurora.evaluation.statistics import score_interval
from aurora.interfaces import Item
from aurora.terminal import table

SHOWN_FAILURES = 5

Answers = Mapping[str, str | None]
"""What was answered, by the id of the item; None where it could not be asked."""
Judged = Callable[[Item, str], bool | None]
"""Whether an answer to an item is right; None when it says nothing that could be."""
Row = Mapping[str, Any]


def names_right_option(item: Item, answer: str) -> bool | None:
    """Whether an answer names the right option, as `chosen_option` reads it, or one of the same text; None when it
    names none."""
    chosen = chosen_option(answer, item.options)
    return None if chosen is None else item.options[chosen].strip() == item.options[item.right or 0].strip()


def accuracy(items: Sequence[Item], answers: Answers, judged: Judged = names_right_option) -> dict[str, Any]:
    """Accuracy of all items and by family, with its interval and chance; what could not be asked counts as wrong.

    Controls are scored apart, as `wrong_video_accuracy`.
    """
    verdicts = {item.id: None if answers[item.id] is None else judged(item, answers[item.id] or "") for item in items}
    own = [item for item in items if not item.control]
    unparsed = sum(verdicts[item.id] is None and answers[item.id] is not None for item in own)
    return {**_accuracy(items, verdicts), "unparsed": unparsed,
            "families": {name: _accuracy(group, verdicts) for name, group in _by_family(items).items()}}


def _accuracy(items: Sequence[Item], verdicts: Mapping[str, bool | None]) -> dict[str, Any]:
    own = [item for item in items if not item.control]
    right = [verdicts[item.id] is True for item in own]
    low, high = score_interval(right, clusters=[item.video for item in own]) or (None, None)
    return {"n": len(own), "accuracy": _mean(right), "low": low, "high": high,
            "chance": _mean([1 / len(item.options) for item in own if item.options]),
            "wrong_video_accuracy": _mean([verdicts[item.id] is True for item in items if item.control])}


def text_overlap(items: Sequence[Item], answers: Answers) -> dict[str, Any]:
    """How much of the reference the answers to open questions share with it, over all and by family."""
    return {**_overlap(items, answers),
            "families": {name: _overlap(group, answers) for name, group in _by_family(items).items()}}


def _overlap(items: Sequence[Item], answers: Answers) -> dict[str, Any]:
    pairs = [(answers[item.id] or "", item.answer) for item in items]
    return {"n": len(items), **squad_scores(pairs), "bleu_1": corpus_bleu(pairs, words=1),
            "bleu_4": corpus_bleu(pairs, words=4)}


def squad_scores(pairs: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """Exact match and word F1 of (answer, truth) pairs, in [0, 1]; case, punctuation and articles do not count.

    An empty answer is 0: SQuAD's normalisation leaves nothing of the truth "a" either.
    """
    if not pairs:
        return {"exact_match": None, "token_f1": None}
    said = [pair for pair in pairs if pair[0].strip()]
    if not said:
        return {"exact_match": 0.0, "token_f1": 0.0}
    scores = squad([{"id": str(number), "prediction_text": answer} for number, (answer, _) in enumerate(said)],
                   [{"id": str(number), "answers": {"answer_start": [0], "text": [truth]}}
                    for number, (_, truth) in enumerate(said)])
    share = len(said) / len(pairs) / 100
    return {"exact_match": float(scores["exact_match"]) * share, "token_f1": float(scores["f1"]) * share}


def corpus_bleu(pairs: Sequence[tuple[str, str]], *, words: int) -> float | None:
    """BLEU over all (answer, truth) pairs with up to `words` words in a row; texts are split at white space.

    BLEU-1 is the column of VATEX in the paper's Table 2, there with a tokenizer of its own.
    """
    if not pairs:
        return None
    answers, truths = zip(*pairs, strict=True)
    return float(bleu_score(answers, [[truth] for truth in truths], n_gram=words))


def _by_family(items: Sequence[Item]) -> dict[str, list[Item]]:
    family = attrgetter("family")
    return {name: list(group) for name, group in groupby(sorted(items, key=family), family)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---- the table ----------------------------------------------------------------------------------------------------


def render(result: Row) -> RenderableType:
    """The scores, accuracy by family against chance and wrong videos, open questions, what is missing or failed."""
    parts: list[RenderableType] = [Text("\n".join(_headlines(result)), style="bold")]
    if "judge" in result:
        parts.append(_table(f"Judged by {result['judge']['model']}, in percent", _JUDGED, result))
    elif result.get("n") and "accuracy" in result:
        score = result.get("protocol", {}).get("score", "text").replace("_", " ")
        caption = None
        if result["wrong_video_accuracy"] is not None:
            caption = "wrong video: asked about a video for which another answer is correct"
        parts.append(_table(f"Answers chosen by {score}, in percent", _choice_columns(result), result, caption=caption))
    if result.get("open", {}).get("n"):
        parts.append(_table("Open questions", _OPEN, result["open"]))
    if result.get("unparsed"):
        parts.append(Text(f"{result['unparsed']} of {result['n']} answers named no option and count as wrong."))
    if unjudged := result.get("unjudged_questions"):
        parts.append(_listed(f"{len(unjudged)} of {result['judge_questions']} questions got no verdict and are in no "
                             "mean:", [f"{one['id']} ({one['question']}): {one['reason']}" for one in unjudged]))
    if missing := result.get("missing_videos"):
        parts.append(Text(f"{len(missing)} videos are missing: {_some(missing)}", style="red"))
    if late := result.get("behind_end"):
        parts.append(_listed(f"{len(late)} questions were asked about a moment behind the end of their video:",
                             [f"{one['id']} ({one['video']}): second {one['at']:g}, {one['seconds']:.1f} behind"
                              for one in late]))
    if failures := result.get("failures"):
        parts.append(_listed(f"{len(failures)} questions could not be asked and count as wrong:",
                             [f"{one['id']} ({one['video']}): {one['reason']}" for one in failures]))
    return Group(*parts)


def _listed(title: str, lines: Sequence[str]) -> Text:
    """What went wrong, as far as it is shown."""
    more = [f"and {len(lines) - SHOWN_FAILURES} more"] if len(lines) > SHOWN_FAILURES else []
    return Text("\n  ".join([title, *lines[:SHOWN_FAILURES], *more]), style="red")


def _headlines(result: Row) -> list[str]:
    """A line per scorer."""
    lines = []
    scorer = f"judged by {result['judge']['model']}" if "judge" in result else result.get("scorer", "strict")
    for name, row in ((scorer, result), ("lmms_compat", result.get("lmms_compat"))):
        if row is not None and "metric" in row:
            missing = "to be given by `aurora judge`" if result.get("judge_needed") else "none"
            score = row.get("not_scored", missing) if row["score"] is None else f"{row['score']:.2f}"
            lines.append(f"{row['metric']}: {score} ({name})")
    return lines


def _some(names: Sequence[str], most: int = SHOWN_FAILURES) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: "–" if row.get(key) is None else f"{100 * row[key]:.1f}"


_CHOICE: Mapping[str, Callable[[Row], str]] = {
    "accuracy": _share("accuracy"), "95 % interval": lambda row: "–" if row["low"] is None else
        f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
    "chance": _share("chance"), "wrong video": _share("wrong_video_accuracy"),
}
_JUDGED: Mapping[str, Callable[[Row], str]] = {
    "judged": lambda row: str(row["judged"]), "accuracy": _share("accuracy"),
    "score, 0 – 5": lambda row: "–" if row["mean_score"] is None else f"{row['mean_score']:.2f}",
}
_OPEN = {"exact match": _share("exact_match"), "word F1": _share("token_f1"), "BLEU-1": _share("bleu_1"),
         "BLEU-4": _share("bleu_4")}


def _choice_columns(result: Row) -> Mapping[str, Callable[[Row], str]]:
    """Without the one for wrong videos where none were shown."""
    return {name: cell for name, cell in _CHOICE.items()
            if name != "wrong video" or result["wrong_video_accuracy"] is not None}


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
