"""Results in lmms-eval's files and back; the samples below have the shape that its `--log_samples` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aurora.errors import AuroraError
from aurora.evaluation.lmms_format import Sample, export, matched, read_samples
from aurora.evaluation.predictions import Prediction, write_items, write_predictions
from aurora.interfaces import Item

ITEMS = [Item(f"q{number}", "clip.mp4", prompt, "yes") for number, prompt in enumerate(["Is it?", "Was it?", "Is it?"])]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    write_items(folder, ITEMS, {"missing_videos": []})
    settings = {"benchmark": {"name": "llava"}, "questions": "digest"}
    write_predictions(folder / "predictions.jsonl", settings,
                      [Prediction(item.id, f"answer {item.id}") for item in ITEMS])
    result = {"score": 50.0, "metric": "accuracy", "model": "abc"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def sample(number: int, context: str, answer: Any) -> dict[str, Any]:
    return {"doc_id": number, "input": context, "filtered_resps": answer, "target": "yes", "doc_hash": "0"}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_what_is_exported_is_read_back(output: Path, tmp_path: Path) -> None:
    results, samples = export(output, tmp_path / "logs", task="toy")
    assert json.loads(results.read_text())["results"]["toy"]["accuracy,none"] == 50.0
    assert results.name.endswith("_results.json") and samples.name.endswith("_samples_toy.jsonl")
    read = matched(read_samples(samples), ITEMS, samples)
    assert read == [Prediction(item.id, f"answer {item.id}") for item in ITEMS]


def test_questions_are_matched_by_their_text_and_equal_ones_by_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", sample(2, "Is it?", ["second"]), sample(0, "Is  it?\n", "first"),
                 sample(1, "Was it?", [["other"]]))
    assert [one.answer for one in matched(read_samples(path), ITEMS, path)] == ["first", "other", "second"]


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(AuroraError, match="no answer to 'Was it\\?'"):
        matched([Sample(0, "Is it?", "a", ""), Sample(1, "Is it?", "b", "")], ITEMS, Path("s.jsonl"))
    asked = [Sample(number, item.prompt, "a", "") for number, item in enumerate(ITEMS)]
    with pytest.raises(AuroraError, match="1 answers to questions that are not among"):
        matched([*asked, Sample(3, "Who?", "x", "")], ITEMS, Path("s.jsonl"))


@pytest.mark.parametrize("line", [{"doc_id": 0}, sample(0, "Is it?", ["a", "b"]), "text"])
def test_a_line_that_is_something_else_is_named(line: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", sample(0, "Is it?", "a"), line)
    with pytest.raises(AuroraError, match="line 2: not a sample"):
        read_samples(path)


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"holds no result\.json"):
        export(tmp_path, tmp_path, task="toy")
