from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.evaluation.predictions import Prediction, write_items, write_predictions
from aurora.evaluation.report import rows, write_report
from aurora.evaluation.results import apart, compared, read_result
from aurora.evaluation.run import merge
from aurora.evaluation.summary import render
from aurora.interfaces import Item
from aurora.registry import BENCHMARK

SETTINGS = {"model": "0123456789abcdef", "keep_ratio": 0.1, 
            "sampling": {"fps": 1.0, "frames": None, "max_frames": None},
            "sort": {"name": "size", "order": "ascending"}, "questions": "digest", "protocol": {"score": "text"}}


def made(output: Path, right: str, *, name: str = "blocks", about: dict[str, Any] | None = None, **changes: Any
         ) -> Path:
    """Results of choices about eight videos: "1" in `right` is a correct answer, "0" a wrong one, "-" a failure; the
    first half are of one family, the rest of another."""
    items = [Item(str(number), f"{number % 8}.mp4", "Which?", "red", ("red", "blue"), 0,
                  ("order", "count")[number * 2 // len(right)]) for number in range(len(right))]
    write_items(output, items, {"missing_videos": ["x.mp4"] if "-" in right else [], "limit": None,
                                "versions": {"torch": "2"}, "hardware": {"cpu": "Zen", "cores": 2}, **(about or {})})
    lines = [Prediction(item.id, "red" if how == "1" else "blue", "broken" if how == "-" else None)
             for item, how in zip(items, right, strict=True)]
    for rank in range(2):
        write_predictions(output / f"predictions-{rank}-of-2.jsonl",
                          {**SETTINGS, "benchmark": {"name": name}, **changes}, lines[rank::2])
    merge(output)
    return output


def edited(output: Path, **changes: Any) -> Path:
    path = output / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return output


def row(output: Path) -> Any:
    return rows([read_result(output)])[0][0]


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_when_all_are_right_or_all_wrong_the_interval_is_not_a_point(tmp_path) -> None:
    for right, low, high in (("1" * 8, 67.6, 100), ("0" * 8, 0, 32.4)):
        interval = row(made(tmp_path / right, right)).interval
        assert interval.low == pytest.approx(low, abs=0.05) and interval.high == pytest.approx(high, abs=0.05)


def test_the_result_its_table_and_the_report_have_one_interval(tmp_path) -> None:
    output = made(tmp_path / "out", "110110111010")
    facts = json.loads((output / "result.json").read_text())
    one = row(output)
    assert tuple(one.interval) == pytest.approx((100 * facts["low"], 100 * facts["high"]))
    assert [family.interval and pytest.approx(tuple(family.interval)) for family in one.families] == [
        (100 * family["low"], 100 * family["high"]) for family in facts["families"].values()]
    text = io.StringIO()
    Console(width=120, file=text).print(render(facts))
    assert text.getvalue().count(f"{one.interval.low:.1f} – {one.interval.high:.1f}") == 1


def test_a_row_shows_the_score_its_interval_and_what_it_depended_on(tmp_path) -> None:
    one = row(made(tmp_path / "out", "11110-0100"))
    assert (one.name, one.score, one.questions) == ("blocks", 50.0, 10) and one.interval.low < 50 < one.interval.high
    assert dict(one.counts) == {"videos missing": 1, "failed": 1}
    assert [(family.name, family.score, family.chance) for family in one.families] == [
        ("count", 20.0, 50.0), ("order", 80.0, 50.0)]
    depends = {"model": "0123456789ab", "frames": "1 frame a second", "keep ratio": "0.1",
               "order": "size, order ascending", "versions": "torch 2", "hardware": "Zen, 2 cores"}
    assert depends.items() <= dict(one.depends).items()


def test_the_papers_numbers_stand_beside_with_its_contradictions(tmp_path) -> None:
    output = made(tmp_path / "out", "1100110011", name="mlvu", sampling={"fps": None, "frames": 48})
    (one,), notes = rows([read_result(output)])
    assert (one.paper, one.where, one.differs, one.others) == (
        52.7, "Table B5", ["5 tasks missing"], {"Video-XL-2": 74.9})
    assert {family.name: family.paper for family in one.families} == {"order": 33.2, "count": 42.9}
    assert "ego (54.8) and order (29.4)" in notes[one.notes[0] - 1]


def test_a_mean_over_some_of_the_tasks_is_no_score(tmp_path) -> None:
    one = row(made(tmp_path / "out", "1100110011", name="mlvu"))
    assert (one.score, one.interval) == (None, None) and ("tasks missing", 5) in one.counts
    assert one.missing_score == ("no mean, for nothing was asked of plotQA, needle, ego, anomaly_reco, "
                                 "topic_reasoning")
    assert {family.name: family.score for family in one.families} == {"order": 60.0, "count": 60.0}


def test_what_is_not_as_in_the_paper_is_said(tmp_path) -> None:
    output = made(tmp_path / "out", "110011001-", name="mlvu", about={"limit": 10}, sort={"name": "random", "seed": 4})
    assert row(output).differs == ["1 frame a second instead of 48 frames", "only 10 questions", "1 videos missing",
                                   "5 tasks missing", "order random, seed 4 instead of size, ascending"]


@pytest.mark.parametrize(("options", "paper"), [
    ({"name": "mvbench", "subtasks": "paper17"}, 53.2), ({"name": "mvbench", "subtasks": "all"}, None),
    ({"name": "mvbench"}, None), ({"name": "vdc", "part": "camera"}, 43.7), ({"name": "vdc"}, 42.54),
    ({"name": "moviechat", "mode": "breakpoint"}, 64.0), ({"name": "moviechat", "mode": "global"}, 84.0),
    ({"name": "activitynet_qa"}, 60.0), ({"name": "vatex"}, 68.5), ({"name": "msrvtt"}, None), ({"name": "mlvu"}, 52.7),
    ({"name": "mlvu", "split": "test"}, None), ({"name": "blocks"}, None)])
def test_the_number_of_just_this_benchmark_is_beside_it(options, paper, tmp_path) -> None:
    edited(made(tmp_path / "out", "1100"), benchmark=options)
    assert row(tmp_path / "out").paper == paper


def test_every_published_row_is_of_a_benchmark_that_there_is() -> None:
    from aurora.evaluation.report import _PUBLISHED

    for published in _PUBLISHED["rows"]:
        BENCHMARK.build({"name": published["benchmark"], **published.get("options", {})})
        assert set(published.get("notes", ())) <= set(_PUBLISHED["notes"])


def test_without_its_predictions_a_result_has_no_interval_and_says_why(tmp_path) -> None:
    (made(tmp_path / "out", "1100") / "predictions.jsonl").unlink()
    one = row(tmp_path / "out")
    assert one.interval is None and dict(one.depends)["no interval"] == "no predictions.jsonl beside it"
    write_items(made(tmp_path / "items", "1100"), [Item("0", "0.mp4", "Which?", "red")], {"limit": 1})
    assert "items.jsonl holds other items than the result" in dict(row(tmp_path / "items").depends)["no interval"]
    edited(made(tmp_path / "other", "1100"), keep_ratio=0.7)
    assert "holds another keep_ratio than the result" in dict(row(tmp_path / "other").depends)["no interval"]


def test_answers_that_are_newer_than_the_score_make_no_interval(tmp_path) -> None:
    output = made(tmp_path / "out", "11001100--")
    with (output / "predictions.jsonl").open("a") as file:  # of a run that was killed while it asked again what failed
        file.write(json.dumps(asdict(Prediction("9", "red"))) + "\n")
    one = row(output)
    assert one.score == 40.0 and one.interval is None
    assert "the predictions are newer than the result" in dict(one.depends)["no interval"]


def test_what_is_not_judged_yet_says_so(tmp_path) -> None:
    edited(made(tmp_path / "out", "1100"), judge_needed="yes_no", score=None)
    assert row(tmp_path / "out").missing_score == "to be judged"


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_holds_what_names_say_without_letting_them_act(tmp_path) -> None:
    bad = "a|b <script>alert(1)</script>"
    output = edited(made(tmp_path / "out", "1100"), benchmark={"name": "blocks", "seed": bad}, versions={"torch": bad})
    html, markdown = write_report([read_result(output)], tmp_path / "pages" / "page")
    assert "<script>" not in html.read_text() + markdown.read_text()
    assert "a\\|b &lt;script>" in markdown.read_text() and "a|b &lt;script&gt;" in html.read_text()


@pytest.mark.parametrize(("changes", "reason"), [
    ({"questions": "others"}, "other items"),
    ({"sampling": {"fps": 2.0}}, "other frames (1 frame a second; 2 frames a second)"),
    ({"protocol": {"score": "likelihood"}}, "another way of answering"),
])
def test_rows_that_stand_for_different_things_are_named(changes, reason, tmp_path) -> None:
    results = [read_result(made(tmp_path / "one", "1100")), read_result(made(tmp_path / "two", "1100", **changes))]
    assert [found.rows for found in apart(results)] == [[[1], [2]]]
    for page in write_report(results, tmp_path / "page"):
        assert f"Rows 1 and 2 are not comparable: {reason}" in page.read_text().replace("&#34;", '"')


def test_many_rows_of_one_benchmark_are_named_once(tmp_path) -> None:
    settings = [{"questions": str(number % 6), "sampling": {"fps": 1.0 + (number == 3)}} for number in range(7)]
    results = [read_result(made(tmp_path / str(number), "1100", **changes)) for number, changes in enumerate(settings)]
    for page in write_report(results, tmp_path / "page"):
        assert page.read_text().count("not comparable") == 1
        assert "Rows (1, 7), 2, 3, 4, 5 and 6 are not comparable: other items; other frames." in page.read_text()


def test_another_scorer_or_judge_is_named(tmp_path) -> None:
    one = read_result(made(tmp_path / "one", "1100"))
    two = read_result(edited(made(tmp_path / "two", "1100"), scorer="lmms_compat",
                             judge={"model": "gpt", "prompt": "abc"}))
    ((_, reasons),) = apart([one, two])
    assert [reason.partition(" (")[0] for reason in reasons] == ["another scorer", "another judge"]


# ---- comparison ----------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_item_by_item(tmp_path) -> None:
    first, second = (read_result(made(tmp_path / name, right, keep_ratio=keep)) for name, right, keep in (
        ("one", "1100110000", 0.1), ("two", "1111110001", 0.5)))
    found = compared(first, second)
    assert list(found) == ["all", "count", "order"]
    whole = found["all"]
    assert (whole.n, whole.only_first, whole.only_second) == (10, 0, 3)
    assert whole.difference == pytest.approx(0.3) and whole.interval.low <= 0.3 <= whole.interval.high
    assert whole.mcnemar == whole.p == 0.25
    html, markdown = write_report([first, second], tmp_path / "page", compare=True)
    assert "They differ in: keep_ratio was 0.1, is 0.5." in html.read_text()
    assert "| all | 10 | 40.0 | 70.0 | +30.0 |" in markdown.read_text()


def test_other_frames_may_be_compared_and_are_said(tmp_path) -> None:
    first, second = (read_result(made(tmp_path / str(fps), "1100110000", sampling={"fps": fps})) for fps in (1.0, 2.0))
    html, _ = write_report([first, second], tmp_path / "page", compare=True)
    said = "They read other frames (1 frame a second; 2 frames a second): the difference is of that as well"
    assert said in html.read_text()


@pytest.mark.parametrize(("changes", "message"), [
    ({"questions": "others"}, "cannot be compared: other items"),
    ({"name": "mlvu"}, "cannot be compared: blocks is not mlvu"),
    ({"about": {"limit": 3}}, r"cannot be compared: other items \(blocks, 4 questions; blocks, limit 3, 4 questions\)"),
])
def test_what_cannot_be_compared_is_refused(changes, message, tmp_path) -> None:
    first, second = read_result(made(tmp_path / "one", "1100")), read_result(made(tmp_path / "two", "1100", **changes))
    with pytest.raises(AuroraError, match=message):
        write_report([first, second], tmp_path / "page", compare=True)
    assert not list(tmp_path.glob("page*"))


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_both_pages(tmp_path, capsys) -> None:
    output = made(tmp_path / "out", "1100")
    assert main(["report", str(output), str(output / "result.json"), "--output", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr()
    assert "50.00" in shown.out and f"written to {tmp_path}/page.html and {tmp_path}/page.md" in shown.err
    assert main(["report", "--compare", str(output)]) == 2
    assert "--compare takes two results, not 1" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [
    (None, "holds no result.json; give the --output of `aurora eval`"),
    ("{", "cannot be read as JSON"),
    ("[]", "does not hold a JSON object"),
    ("{}", "is not a result of `aurora eval`: 'benchmark' is missing"),
    ('{"accuracy": 1, "benchmark": "mvbench"}', "is not a result of `aurora eval`: 'benchmark' is 'mvbench'"),
    ({"score": "high"}, "'score' is 'high'"),
    ({"families": {"a": 1}}, "'families.a' is '1'"),
    ({"families": {"a": {"chance": "x"}, "b": {}}}, "'families.a.chance' is 'x'"),
    ({"benchmark": {}}, "'benchmark.name' is missing"),
    ({"n": True}, "'n' is 'True'"),
    ({"sort": "size"}, "'sort' is 'size'"),
    ({"lmms_compat": 12.5}, "'lmms_compat' is '12.5'"),
    ({"captions": None}, "'captions' is 'None'"),
    ({"captions": {"intervals": {"cider": [1]}}}, "'captions.intervals.cider"),
    ({"missing_videos": 3}, "'missing_videos' is '3'"),
    ({"sampling": {"fps": "x"}}, "'sampling.fps' is 'x'"),
    ({"judge": {"served": 3}}, "'judge.served' is '3'"),
])
def test_a_file_of_something_else_is_one_clear_error(text, message, tmp_path, capsys) -> None:
    output = made(tmp_path / "out", "1100")
    if isinstance(text, dict):
        edited(output, **text)
    elif text is None:
        (output / "result.json").unlink()
    else:
        (output / "result.json").write_text(text)
    assert main(["report", str(output), "--output", str(tmp_path / "page")]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1 and not list(tmp_path.glob("page*"))


def test_a_result_without_a_score_is_not_one(tmp_path) -> None:
    path = made(tmp_path / "out", "1100") / "result.json"
    facts = json.loads(path.read_text())
    del facts["score"]
    path.write_text(json.dumps(facts))
    with pytest.raises(AuroraError, match=r"out/result\.json is not a result of `aurora eval`: 'score' is missing"):
        read_result(path)
