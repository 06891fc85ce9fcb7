"""Scores the answers of a run by a judge: a language model that compares each with what is right."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aurora.errors import AuroraError, suggest
from aurora.evaluation.judge_client import Endpoint, JudgeClient, Unanswered, VerdictCache
from aurora.evaluation.predictions import read_answers
from aurora.evaluation.run import RESULT_FILE
from aurora.evaluation.statistics import score_interval
from aurora.evaluation.verdicts import KINDS, messages, prompt_hash, read_verdict, said
from aurora.files import read_json, replace_file, replacing, write_json
from aurora.interfaces import Item

VERDICTS_FILE = "verdicts.jsonl"
CACHE_FILE = "verdicts.sqlite"
MOST_UNJUDGED = 0.01  # the share of what is judged above which there is no score
_METRICS = {"yes_no": "judged accuracy, %", "vdc": "judged accuracy, mean of the families, %"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judged:
    """What became of one question to the judge; a caption of VDC has several."""

    id: str  # of the item
    question: str
    right: bool | None = None  # None: unjudged
    score: float | None = None  # 0 to 5
    reason: str | None = None  # why it is unjudged, or was not worth asking
    answer: str | None = None  # what the judge answered from a caption of VDC
    judge: str | None = None  # the model's name in its own words


def judge(output: str | Path, endpoint: Endpoint, *, cache: str | Path | None = None,
          on_progress: Progress = lambda done, every: None) -> dict[str, Any]:
    """Judges the answers of a finished run and writes the scores into its result, which is returned.

    Verdicts are cached as they come: what was judged is not asked again, and a run that was stopped ends with the same
    files. AuroraError when there is nothing to judge, or no request to the judge could succeed; nothing is lost then.
    """
    output = Path(output)
    result, kind, items, answers = _run(output)
    waiting = [one for item in items for one in _questions(item, answers[item.id], kind)]
    store = VerdictCache(Path(cache) if cache is not None else output / CACHE_FILE)
    try:
        found = asyncio.run(_ask_all(endpoint, store, kind, waiting, on_progress))
    finally:
        store.close()
    if all(one.right is None for one in found):
        raise AuroraError(f"the judge {endpoint.model!r} at {endpoint.base_url} gave no verdict, so nothing is scored; "
                          f"the first reason: {found[0].reason}")
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found)
    replace_file(output / VERDICTS_FILE, lines.encode())
    about = {"model": endpoint.model, "served": sorted({one.judge for one in found if one.judge}),
             "base_url": endpoint.base_url, "kind": kind, "prompt": prompt_hash(kind),
             "parameters": dict(endpoint.parameters)}
    result.pop("not_scored", None)  # of a judgement before
    result |= {**judged_scores(items, found, kind), "judge": about}
    with replacing(output / RESULT_FILE, folder=False) as file:
        write_json(file, result)
    return result


def read_verdicts(output: Path) -> list[Judged]:
    """The verdicts beside a result. AuroraError when the file is something else."""
    path = output / VERDICTS_FILE
    try:
        return [Judged(**json.loads(line)) for line in path.read_bytes().splitlines()]
    except (OSError, TypeError, ValueError) as error:
        raise AuroraError(f"{path} cannot be read ({error}); `aurora judge` writes it again") from error


# ---- asking --------------------------------------------------------------------------------------------------------


def _run(output: Path) -> tuple[dict[str, Any], str, list[Item], dict[str, str | None]]:
    """The result of a finished run, how it is judged, its items and answers; None where one could not be asked."""
    if not (output / RESULT_FILE).is_file():
        raise AuroraError(f"{output} holds no {RESULT_FILE}; give the --output of an `aurora eval` that has ended")
    result = read_json(output / RESULT_FILE)
    kind, name = result.get("judge_needed"), result.get("benchmark", {}).get("name")
    if kind is None:
        raise AuroraError(f"{output}: {name} needs no judge; its score is in {RESULT_FILE}")
    if kind not in KINDS:
        raise AuroraError(f"{output}: {name} is judged by {kind!r}, which is not known.{suggest(str(kind), KINDS)}")
    items, answers = read_answers(output, result)
    return result, str(kind), [item for item in items if not item.control], answers


def _questions(item: Item, answer: str | None, kind: str) -> Iterator[tuple[Judged, Mapping[str, str] | None]]:
    """What is judged of an item, and the facts that the judge needs; None where nothing is left to judge."""
    pairs = item.extra["qa_list"] if kind == "vdc" else [{"question": item.extra["question"], "answer": item.answer}]
    given = "caption" if kind == "vdc" else "prediction"
    for pair in pairs:
        if answer is None or not answer.strip():
            why = "the answer is empty" if answer is not None else "the video could not be read"
            yield Judged(item.id, pair["question"], False, 0.0, why), None
        else:
            yield Judged(item.id, pair["question"]), {**pair, given: answer}


async def _ask_all(endpoint: Endpoint, cache: VerdictCache, kind: str,
                   waiting: Sequence[tuple[Judged, Mapping[str, str] | None]], on_progress: Progress) -> list[Judged]:
    """The verdicts in the order of the questions; as many are asked at a time as the endpoint takes."""
    client = JudgeClient(endpoint, cache)
    found = [one for one, _ in waiting]
    open_ones = [place for place, (_, facts) in enumerate(waiting) if facts is not None]
    queue, done = iter(open_ones), 0

    async def work() -> None:
        nonlocal done
        for place in queue:  # shared: each takes the next
            one, facts = waiting[place]
            assert facts is not None
            found[place] = await _ask(client, kind, one, facts)
            done += 1
            on_progress(done, len(open_ones))

    workers = [asyncio.ensure_future(work()) for _ in range(endpoint.concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await client.close()
    return found


async def _ask(client: JudgeClient, kind: str, one: Judged, facts: Mapping[str, str]) -> Judged:
    answer = None
    try:
        if kind == "vdc":
            answer, _ = await client.ask(messages("answer", **facts), lambda text: said(text) or None)
            facts = {**facts, "prediction": answer}
        verdict, model = await client.ask(messages("match", **facts), read_verdict)
    except Unanswered as error:
        return Judged(one.id, one.question, reason=str(error), answer=answer)
    return Judged(one.id, one.question, verdict.right, verdict.score, answer=answer, judge=model or None)


# ---- scores --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What an item adds to the score."""

    right: float  # the share of its questions, from 0 to 1
    score: float | None  # the mean of their scores, from 0 to 5


def judged_outcomes(judged: Sequence[Judged]) -> dict[str, Outcome]:
    """By item; those of which nothing was judged are left out."""
    by_item: dict[str, list[Judged]] = {}
    for one in judged:
        if one.right is not None:
            by_item.setdefault(one.id, []).append(one)
    return {id: Outcome(sum(one.right is True for one in ones) / len(ones),
                        _mean([one.score for one in ones if one.score is not None])) for id, ones in by_item.items()}


def judged_scores(items: Sequence[Item], judged: Sequence[Judged], kind: str) -> dict[str, Any]:
    """What goes into a result: no score where more than 1 % is unjudged, which is named and in no mean."""
    found = judged_outcomes(judged)
    unjudged = [one for one in judged if one.right is None]
    families = {name: _summary([item for item in items if item.family == name], found)
                for name in sorted({item.family for item in items})}
    whole = _summary(items, found)
    share = _mean([row["accuracy"] for row in families.values() if row["accuracy"] is not None]) if kind == "vdc" \
        else whole["accuracy"]
    enough = len(unjudged) <= MOST_UNJUDGED * len(judged)
    return {
        "metric": _METRICS[kind], "score": 100 * share if enough and share is not None else None, **whole,
        "judge_questions": len(judged), "unjudged": len(unjudged),
        "unjudged_questions": [{"id": one.id, "question": one.question, "reason": one.reason} for one in unjudged],
        **({} if enough else {"not_scored": f"{len(unjudged)} of {len(judged)} questions are unjudged, more than 1 %; "
                                            "`aurora judge` asks about them again"}),
        "interval": _interval(items, found, kind), "families": families,
    }


def _summary(items: Sequence[Item], found: Mapping[str, Outcome]) -> dict[str, Any]:
    verdicts = [found[item.id] for item in items if item.id in found]
    return {"n": len(items), "judged": len(verdicts), "accuracy": _mean([one.right for one in verdicts]),
            "mean_score": _mean([one.score for one in verdicts if one.score is not None])}


def _interval(items: Sequence[Item], found: Mapping[str, Outcome], kind: str) -> list[float] | None:
    """Of the score in percent."""
    counted = [item for item in items if item.id in found]
    interval = score_interval([found[item.id].right for item in counted], clusters=[item.video for item in counted],
                              groups=[item.family for item in counted] if kind == "vdc" else None)
    return None if interval is None else list(interval.percent)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
