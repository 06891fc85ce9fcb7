"""Every benchmark's result as `aurora report` shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from aurora.evaluation.judging import Judged, judged_scores
from aurora.evaluation.predictions import Prediction, read_items, write_items, write_predictions
from aurora.evaluation.record import facts
from aurora.evaluation.report import rows, write_report
from aurora.evaluation.results import compared, read_result
from aurora.evaluation.run import merge
from aurora.files import read_json, write_json
from aurora.interfaces import Item

SETTINGS: Mapping[str, Any] = {"model": "abc", "keep_ratio": 0.1, "sampling": {"fps": 1.0, "frames": None},
                               "questions": "digest"}


def evaluated(of_every: Any, output: Path, *, wrong: int = 0, copies: int = 6) -> Path:
    """The output of an evaluation in which all answers are right but for the first so many; every item is asked of so
    many videos."""
    subtasks = {"subtasks": ["action_count", "action_sequence"]} if of_every.name == "mvbench" else {}
    benchmark = {"name": of_every.name, **subtasks}
    items = [_copy(item, number) for number in range(copies)
             for item in of_every.build().items(of_every.folder).items]
    write_items(output, items, {"missing_videos": [], "limit": None, **facts()})
    lines = [Prediction(item.id, "" if number < wrong else item.answer) for number, item in enumerate(items)]
    for rank in range(2):
        write_predictions(output / f"predictions-{rank}-of-2.jsonl", {**SETTINGS, "benchmark": benchmark},
                          lines[rank::2])
    result = merge(output)
    if kind := result["judge_needed"]:
        pairs = [(item, pair["question"]) for item in items for pair in item.extra.get("qa_list", [item.extra])]
        empty = {item.id for item in items[:wrong]}
        judged = [Judged(item.id, question, item.id not in empty, 4.0, judge="j") for item, question in pairs]
        (output / "verdicts.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in judged))
        about = {"model": "j", "served": ["j"], "base_url": "http://j", "kind": kind, "prompt": "p", "parameters": {}}
        write_json(output / "result.json", {**read_json(output / "result.json"), **judged_scores(items, judged, kind),
                                            "judge": about})
    return output


def _copy(item: Item, number: int) -> Item:
    """Of another video, whose captions, if it has any, are others too: CIDEr does not count what all videos share."""
    captions = {"answer": f"{item.answer} {number}", "extra": {
        "references": [f"{text} {number}" for text in item.extra["references"]]}} if "references" in item.extra else {}
    return replace(item, id=f"{number}/{item.id}", video=f"{number}/{item.video}", **captions)


def test_it_has_a_row_whose_interval_is_about_its_score(of_every, tmp_path) -> None:
    result = read_result(evaluated(of_every, tmp_path / "out", wrong=1))
    assert result.problem is None
    (row,), _ = rows([result])
    assert row.name == of_every.name and row.score is not None and row.interval is not None
    assert row.interval.low - 1e-6 <= row.score <= row.interval.high + 1e-6
    shown = {name for name, _ in row.depends}
    assert shown >= {"model", "frames", "keep ratio", "scorer", "seeds", "versions", "hardware"}
    html, markdown = write_report([result], tmp_path / "page")
    assert of_every.name in html.read_text() and f"| {of_every.name}" in markdown.read_text()


def test_every_question_is_counted_and_open_ones_are_shown(of_every, tmp_path) -> None:
    output = evaluated(of_every, tmp_path / "out", wrong=1)
    (row,), _ = rows([read_result(output)])
    _, items = read_items(output)
    opens = [item for item in items if not item.options] if of_every.name in ("blocks", "llava") else []
    assert row.questions == sum(not item.control for item in items)
    assert [(one.name, one.n) for one in row.open] == ([("all", len(opens))] if opens else [])
    for page in write_report([read_result(output)], tmp_path / "page"):
        assert ("open questions" in page.read_text()) is bool(opens)


def test_a_result_of_open_questions_has_a_score_and_an_interval(tmp_path) -> None:
    items = [Item(str(n), f"{n}.mp4", "What?", "a ball rolls", family="ab"[n % 2]) for n in range(12)]
    write_items(tmp_path, items, {"missing_videos": [], "limit": None, **facts()})
    write_predictions(tmp_path / "predictions-0-of-1.jsonl", {**SETTINGS, "benchmark": {"name": "blocks"}},
                      [Prediction(item.id, "a ball" if n % 3 else "") for n, item in enumerate(items)])
    merge(tmp_path)
    (row,), _ = rows([read_result(tmp_path)])
    assert (row.metric, row.questions, [one.name for one in row.open]) == ("word F1, %", 12, ["a", "b", "all"])
    assert row.interval is not None and row.interval.low < row.score == row.open[-1].token_f1 < row.interval.high


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_no_interval_of_a_point(right, of_every, tmp_path) -> None:
    result = read_result(evaluated(of_every, tmp_path / "out", wrong=0 if right else 10**6))
    interval = result.interval()
    assert interval is None or interval.high - interval.low > 5
    if "judge" in result.facts:
        assert result.facts["interval"] == pytest.approx(interval)


def test_what_its_items_add_makes_its_score(of_every, tmp_path) -> None:
    if of_every.name in ("vatex", "msrvtt"):
        pytest.skip("BLEU and CIDEr of a corpus are not the mean of those of its captions")
    result = read_result(evaluated(of_every, tmp_path / "out", wrong=2))
    families = {item.family for item in result.scored}
    means = {name: sum(outcomes) / len(outcomes) for name in families
             if (outcomes := [result.outcomes[item.id] for item in result.scored if item.family == name])}
    weights = result.benchmark.weights(sorted(families))
    counts = [sum(item.family == name for item in result.scored) / len(result.scored) for name in sorted(families)]
    made = sum((count if weights is None else weights[name]) * means[name]
               for name, count in zip(sorted(families), counts, strict=True))
    assert 100 * made == pytest.approx(result.facts["score"])


def test_two_of_its_runs_are_compared_item_by_item(of_every, tmp_path) -> None:
    worse, better = (read_result(evaluated(of_every, tmp_path / str(wrong), wrong=wrong)) for wrong in (1, 0))
    whole = compared(worse, better)["all"]
    assert whole.n == len(worse.scored) and whole.difference > 0
    if whole.only_second is not None:
        assert (whole.only_first, whole.only_second) == (0, 1)
