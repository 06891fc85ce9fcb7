"""Results in lmms-eval's files and back; the samples below have the shape that its `--log_samples` writes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aurora.errors import AuroraError
from aurora.evaluation.lmms_format import Sample, export, import_samples, matched, read_samples
from aurora.evaluation.predictions import Prediction, write_items, write_predictions
from aurora.evaluation.record import facts
from aurora.evaluation.report import write_report
from aurora.evaluation.results import compared, read_result, setting_differences
from aurora.evaluation.run import Protocol, merge
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


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\r\n"])
def test_an_answer_with_any_mark_of_a_new_line_is_read_back(mark: str, output: Path, tmp_path: Path) -> None:
    said = [Prediction(item.id, f"one{mark}two") for item in ITEMS]
    write_predictions(output / "predictions.jsonl", {"benchmark": {"name": "llava"}}, said)
    _, samples = export(output, tmp_path / "logs", task="toy")
    assert matched(read_samples(samples), ITEMS, samples) == said


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


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """The output of an evaluation on a benchmark of choices."""
    folder = tmp_path / "asked"
    items = [Item(f"plotQA/{n}", "a.mp4", f"Which {n}?", "red", ("red", "blue"), 0, "plotQA") for n in range(3)]
    write_items(folder, items, {"missing_videos": ["a.mp4"], "limit": None, **facts()})
    settings = {"model": "abc", "benchmark": {"name": "mlvu"}, "questions": "digest", "protocol": asdict(Protocol()),
                "sampling": {"fps": 1.0, "frames": None, "max_frames": None}, "keep_ratio": 0.1}
    write_predictions(folder / "predictions-0-of-1.jsonl", settings, [Prediction(item.id, "blue") for item in items])
    merge(folder)
    return folder


def samples_of(path: Path) -> Path:
    return write(path, *(sample(n, f"Which {n}?", answer) for n, answer in enumerate(("A", "red", "(B)"))))


def test_what_is_imported_is_scored_and_reported_beside_our_own(asked: Path, tmp_path: Path) -> None:
    samples = samples_of(tmp_path / "theirs_samples_mlvu_dev.jsonl")
    result = import_samples(samples, asked, tmp_path / "theirs")
    assert result["accuracy"] == pytest.approx(2 / 3) and result["missing_videos"] == []
    theirs, ours = read_result(tmp_path / "theirs"), read_result(asked)
    assert compared(ours, theirs)["all"].difference == pytest.approx(2 / 3)
    assert [one.partition(" ")[0] for one in setting_differences(ours, theirs)] == ["model"]
    assert result["parallel"] is None  # theirs is not recorded
    _, page = write_report([ours, theirs], tmp_path / "page", compare=True)
    assert "unknown frames" in page.read_text() and f"lmms-eval: {samples.name}" in page.read_text()


def test_importing_again_ends_the_same_and_into_another_run_is_refused(asked: Path, tmp_path: Path) -> None:
    samples = samples_of(tmp_path / "s.jsonl")
    assert import_samples(samples, asked, tmp_path / "theirs") == import_samples(samples, asked, tmp_path / "theirs")
    before = {path.name: path.read_bytes() for path in asked.iterdir()}
    with pytest.raises(AuroraError, match="of another run; choose another --output"):
        import_samples(samples, asked, asked)
    assert {path.name: path.read_bytes() for path in asked.iterdir()} == before


def test_what_failed_is_a_failure_again(asked: Path, tmp_path: Path) -> None:
    settings = json.loads((asked / "predictions-0-of-1.jsonl").read_text().splitlines()[0])["settings"]
    made = [Prediction("plotQA/0", "A"), Prediction("plotQA/1", "", "no such file"), Prediction("plotQA/2", "")]
    write_predictions(asked / "predictions-0-of-1.jsonl", settings, made)
    ours = merge(asked)
    _, samples = export(asked, tmp_path / "logs", task="mlvu_dev")
    theirs = import_samples(samples, asked, tmp_path / "theirs")
    assert theirs["failed"] == 1 and theirs["failures"] == ours["failures"]
    assert theirs["unparsed"] == ours["unparsed"] == 1


def test_results_of_the_same_second_are_exported_beside_each_other(output: Path, tmp_path: Path) -> None:
    first = export(output, tmp_path / "logs", task="toy")
    before = [path.read_bytes() for path in first]
    stamp = (output / "result.json").stat()
    (output / "result.json").write_text(json.dumps({"score": 60.0, "metric": "accuracy", "model": "def"}))
    os.utime(output / "result.json", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = export(output, tmp_path / "logs", task="toy")
    assert export(output, tmp_path / "logs", task="toy") == second  # the same result, the same files
    assert len({*first, *second}) == 4 and [path.read_bytes() for path in first] == before


def test_a_run_that_was_begun_again_is_not_exported(output: Path, tmp_path: Path) -> None:
    write_predictions(output / "predictions.jsonl", {"benchmark": {"name": "llava"}}, [Prediction("q0", "yes")])
    with pytest.raises(AuroraError, match="holds no prediction of 'q1'"):
        export(output, tmp_path / "logs", task="toy")


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"holds no result\.json"):
        export(tmp_path, tmp_path, task="toy")
