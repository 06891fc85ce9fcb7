"""`lmms_compat` is what the real lmms-eval 0.7.3 says, as tools/check_lmms_scores.py stored it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aurora.interfaces import Item
from aurora.registry import BENCHMARK

TABLE = Path(__file__).with_name("lmms_scores.jsonl")
STORED: dict[str, dict[str, Any]] = {one["task"]: one for one in map(json.loads, TABLE.read_text("utf-8").splitlines())}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[3] / "tools" / "check_lmms_scores.py"
    spec = importlib.util.spec_from_file_location("check_lmms_scores", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_task_has_500_answers_that_differ(tool) -> None:
    assert STORED.keys() == tool.TASKS.keys()
    for task, one in STORED.items():
        assert len({answer for answer, _ in one["verdicts"]}) >= 500, task


@pytest.mark.parametrize("task", STORED)
def test_every_answer_is_judged_as_lmms_eval_judges_it(tool, task) -> None:
    docs, stored = tool.TASKS[task], STORED[task]
    pairs = [(doc, answer) for answer, _ in stored["verdicts"] for doc in docs]
    right, score = tool.ours(task, pairs)
    wanted = [bool(one) for _, verdicts in stored["verdicts"] for one in verdicts]
    assert [pair for pair, one, other in zip(pairs, right, wanted, strict=True) if one != other] == []
    assert score == pytest.approx(stored["score"], abs=1e-9)  # it sums in the order of a set of strings
    assert 0 < sum(wanted) < len(wanted)


@pytest.mark.parametrize(("name", "answer"), [("mlvu", "A man opens the door."), ("mvbench", "The man picks up a cup"),
                                              ("timescope", "An apple"), ("lvbench", "Almost nothing")])
def test_sentences_that_the_public_scorers_count_as_a_are_wrong_to_strict(name, answer) -> None:
    item = Item("1", "v.mp4", "Which?", "red", ("red", "blue", "green", "grey"), 0, "plotQA")
    benchmark = BENCHMARK.build({"name": name})
    assert benchmark.compat(item, answer) and not benchmark.judged(item, answer)


@pytest.mark.parametrize(("answers", "score"), [
    (["C", "A"], 100.0), (["C", ""], 100.0), (["C.", "B"], 50.0), ([" C", "A"], 50.0)])
def test_streaming_bench_counts_first_characters_as_its_makers_do(answers, score) -> None:
    items = [Item(str(n), "v.mp4", "Which?", "x", ("w", "y", "x", "z"), right) for n, right in enumerate((2, 0))]
    benchmark = BENCHMARK.build({"name": "streaming_bench"})
    assert benchmark.score(items, dict(zip("01", answers, strict=True)), "lmms_compat")["score"] == score
