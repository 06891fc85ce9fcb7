from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.evaluation.predictions import Shard, read_items, write_items
from aurora.evaluation.run import Protocol, evaluate, merge
from aurora.evaluation.scoring import score_options
from aurora.evaluation.summary import render
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import as_file
from aurora.interfaces import Item, Sampling
from aurora.model import AuroraModel
from aurora.registry import BENCHMARK

PROTOCOL = Protocol(max_new_tokens=6)
GENERATION = Generation(max_new_tokens=6)
CONTROL = " (wrong video)"
OPTIONS = ["red", "blue", "green", "grey"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for clip in range(3):
        make_video(folder / "videos" / f"{clip}.mp4", 6, seed=clip)
        for number, family in enumerate(("colour", "direction")):
            lines.append({"id": f"{clip}-{family}", "video": f"videos/{clip}.mp4", "family": family,
                          "question": f"Which {family}?", "options": OPTIONS, "answer": (clip + number) % 4})
        lines.append({"id": f"{clip}-open", "video": f"videos/{clip}.mp4", "family": "caption",
                      "question": "What is it?", "answer": "a square"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(model: AuroraModel, config: ModelConfig, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    return evaluate(model, config, data, output=output, **{"protocol": PROTOCOL, **options})


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n")[1:-1]]


def test_every_question_is_asked_about_its_video_and_choices_about_a_wrong_one(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    assert {line["id"] for line in lines(tmp_path)} == {
        f"{clip}-{asked}" for clip in range(3)
        for asked in ("colour", f"colour{CONTROL}", "direction", f"direction{CONTROL}", "open")}
    controls = [item for item in read_items(tmp_path)[1] if item.control]
    assert len(controls) == 6 and all(item.video != f"videos/{item.id[0]}.mp4" for item in controls)


def test_predictions_are_what_a_film_of_the_video_answers_alone(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    watcher = VideoModel(model, config)
    items = {item.id: item for item in read_items(tmp_path)[1]}
    assert len(items) == 15
    for line in lines(tmp_path):
        film = watcher.watch(data / items[line["id"]].video, prompt=config.prompt)
        assert line["answer"] == film.ask(items[line["id"]].prompt, options=GENERATION).strip()


def test_a_folder_of_pictures_is_shown_as_three_a_second(model, config, tmp_path) -> None:
    clip = tmp_path / "data" / "video/tvqa/frames_fps3_hq/clip"
    clip.mkdir(parents=True)
    for number in range(1, 22):
        Image.new("RGB", (48, 32), (12 * number, 40, 90)).save(clip / f"{number:05d}.jpg", quality=95)
    (tmp_path / "data" / "json").mkdir()
    asked = {"question": "Who?", "candidates": ["He", "She"], "answer": "She", "start": 2.0, "end": 5.0}
    (tmp_path / "data" / "json" / "episodic_reasoning.json").write_text(json.dumps(
        [{**asked, "video": name} for name in ("clip", "none", "empty")]))
    (clip.parent / "empty").mkdir()
    benchmark = {"name": "mvbench", "subtasks": ["episodic_reasoning"]}
    result = run(model, config, tmp_path / "data", tmp_path / "out", benchmark=benchmark)
    assert [one["video"].split("/")[-1] for one in result["failures"]] == ["none.mp4", "empty"]
    assert "without numbered pictures" in result["failures"][1]["reason"] and len(result["missing_videos"]) == 1
    with as_file(clip, fps=3) as file:
        film = VideoModel(model, config).watch(file, start=2.0, stop=5.0, prompt=config.prompt)
        frames = dict(film.model.reader.read(str(file), Sampling(fps=1.0, start=2.0, stop=5.0)))
        prompt = read_items(tmp_path / "out")[1][0].prompt
        assert film.frames == 6 and lines(tmp_path / "out")[0]["answer"] == film.ask(prompt, options=GENERATION).strip()
    assert not file.exists()
    reds = {second: round(frame[..., 0].mean() / 12) for second, frame in frames.items()}
    assert reds == {2.0: 7, 3.0: 10, 4.0: 13}  # the first picture is at second 0


def test_a_result_says_how_it_was_made(model, config, data, tmp_path) -> None:
    result = run(model, config, data, tmp_path, model_hash="abc")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {key: result[key] for key in ("model", "keep_ratio", "sampling", "prompt", "n", "chance", "failed")} == {
        "model": "abc", "keep_ratio": 0.5, "sampling": {"fps": 2.0, "frames": None, "max_frames": None},
        "prompt": {"name": "sandwich"}, "n": 6, "chance": 0.25, "failed": 0}
    assert set(result["families"]) == {"colour", "direction"} and result["open"]["n"] == 3
    assert {"torch", "python", "aurora"} <= result["versions"].keys() and result["benchmark"] == {"name": "blocks"}


def test_a_stopped_run_goes_on_and_ends_with_the_same_result(model, config, data, tmp_path) -> None:
    whole = run(model, config, data, tmp_path / "whole")
    run(model, config, data, tmp_path / "cut")
    path = tmp_path / "cut" / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = len(path.read_text().split("\n")) - 2
    done: list[int] = []
    again = run(model, config, data, tmp_path / "cut", on_progress=lambda now, _: done.append(now))
    assert done[0] > before > 0
    assert again == whole
    assert same_files(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_asks_nothing_again(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    done: list[int] = []
    run(model, config, data, tmp_path, on_progress=lambda now, _: done.append(now))
    assert done == []


def test_predictions_made_otherwise_are_not_added_to(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path)
    with pytest.raises(AuroraError, match=r"keep_ratio was 0.5, is 0.25"):
        run(model, replace(config, keep_ratio=0.25), data, tmp_path)
    run(model, replace(config, keep_ratio=0.25), data, tmp_path, restart=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shard", [Shard(), Shard(0, 2)])
def test_a_run_that_is_refused_leaves_the_folder_as_it_was(model, config, data, tmp_path, shard) -> None:
    run(model, config, data, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(AuroraError, match="other settings"):
        run(model, replace(config, keep_ratio=0.25), data, tmp_path, limit=1, shard=shard)
    assert contents(tmp_path) == before


def test_a_limit_keeps_the_answers_to_other_questions(model, config, data, tmp_path) -> None:
    whole = run(model, config, data, tmp_path)
    before = contents(tmp_path)
    assert run(model, config, data, tmp_path, limit=1)["n"] == 1
    assert {line["id"] for line in lines(tmp_path)} == {item.id for item in BENCHMARK.build({"name": "blocks"}).items(
        data).items}
    done: list[int] = []
    assert run(model, config, data, tmp_path, on_progress=lambda now, _: done.append(now)) == whole
    assert done == [] and contents(tmp_path) == before


def test_items_of_another_run_are_not_merged(model, config, data, tmp_path) -> None:
    for rank in range(2):
        run(model, config, data, tmp_path, shard=Shard(rank, 2))
    about, items = read_items(tmp_path)
    write_items(tmp_path, items[:3], {**about, "questions": "others"})
    with pytest.raises(AuroraError, match=r"to other questions than items\.jsonl holds"):
        merge(tmp_path)


def test_a_file_of_something_else_is_not_overwritten(model, config, data, tmp_path) -> None:
    (tmp_path / "predictions.jsonl").write_text("something of value\n")
    with pytest.raises(AuroraError, match="not a file of predictions"):
        run(model, config, data, tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == "something of value\n"


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    (folder / "videos").mkdir(parents=True)
    (folder / "questions.jsonl").write_bytes((data / "questions.jsonl").read_bytes())
    whole = (data / "videos" / "0.mp4").read_bytes()
    (folder / "videos" / "0.mp4").write_bytes(whole)
    (folder / "videos" / "1.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def test_a_missing_or_broken_video_is_counted_shown_and_wrong(model, config, damaged, tmp_path) -> None:
    result = run(model, config, damaged, tmp_path / "out")
    assert (result["n"], result["failed"], result["open"]["n"]) == (6, 6, 3)
    assert {failed["video"] for failed in result["failures"]} == {"videos/1.mp4", "videos/2.mp4"}
    assert all(failed["reason"] for failed in result["failures"])


def test_what_failed_is_tried_again(model, config, damaged, data, tmp_path) -> None:
    run(model, config, damaged, tmp_path / "out")
    for name in ("1.mp4", "2.mp4"):
        (damaged / "videos" / name).write_bytes((data / "videos" / name).read_bytes())
    assert run(model, config, damaged, tmp_path / "out")["failures"] == []


def test_a_run_in_which_all_failed_has_no_result(model, config, damaged, tmp_path) -> None:
    (damaged / "videos" / "0.mp4").unlink()
    with pytest.raises(AuroraError, match=r"no video could be read.*does not exist"):
        run(model, config, damaged, tmp_path / "out")


def test_a_limit_is_spread_over_the_file(model, config, data, tmp_path) -> None:
    result = run(model, config, data, tmp_path, limit=3)
    assert {line["id"].removesuffix(CONTROL) for line in lines(tmp_path)} == {"0-colour", "1-colour", "2-colour"}
    assert len(lines(tmp_path)) == 6
    assert result["n"] == 3


def test_how_many_are_read_together_changes_nothing(model, config, data, tmp_path) -> None:
    results = [run(model, config, data, tmp_path / str(parallel), parallel=parallel) for parallel in (1, 32)]
    assert [result.pop("parallel") for result in results] == [1, 32]  # which it may change with another model
    assert results[0] == results[1]


@pytest.mark.parametrize("score", ["likelihood", "likelihood_per_token"])
def test_the_likeliest_option_is_the_answer(model, config, data, tmp_path, score) -> None:
    uneven = tmp_path / "data"
    shutil.copytree(data, uneven)
    text = (data / "questions.jsonl").read_text()
    (uneven / "questions.jsonl").write_text(text.replace('"grey"', '"grey, and at some other time another colour"'))
    result = run(model, config, uneven, tmp_path / "out", protocol=replace(PROTOCOL, score=score))
    watcher = VideoModel(model, config)
    items = {item.id: item for item in read_items(tmp_path / "out")[1]}
    for line in lines(tmp_path / "out"):
        asked = items[line["id"]]
        film = watcher.watch(uneven / asked.video, prompt=config.prompt)
        if asked.options:
            scores = score_options(model, watcher.runner, film.read_all([asked.prompt]), asked.options)
            wanted = [getattr(one, {"likelihood": "log_prob"}.get(score, "per_token")) for one in scores]
            assert line["log_probs"] == pytest.approx(wanted, rel=1e-4)
            assert line["answer"] == asked.options[wanted.index(max(wanted))]
        else:
            assert line["log_probs"] is None
            assert line["answer"] == film.ask(asked.prompt, options=GENERATION).strip()
    assert (result["unparsed"], result["protocol"]["score"]) == (0, score)
    with pytest.raises(AuroraError, match="score"):
        run(model, config, uneven, tmp_path / "out")


def item(id: str, family: str, options: int) -> Item:
    return Item(id, f"{id}.mp4", "Which?", "red", tuple(OPTIONS[:options]), 0, family)


def summary(*answers: tuple[Item, str | None, str | None]) -> dict[str, Any]:
    """`answers`: item, answer on its own video, answer on the wrong one."""
    items = [asked for asked, _, _ in answers]
    said = {asked.id: own for asked, own, _ in answers}
    for asked, _, wrong in answers:
        if wrong is not None:
            items.append(replace(asked, id=asked.id + CONTROL, control=True))
            said[asked.id + CONTROL] = wrong
    return BENCHMARK.build({"name": "blocks"}).score(items, said, "strict")


def test_accuracies_count_every_question() -> None:
    result = summary(
        (item("1", "colour", 4), "(A) red", "(B) blue"),
        (item("2", "colour", 4), "", "(A)"),
        (item("3", "count", 2), None, "(B)"),
        (item("4", "count", 2), "A man opens the door", "A"),
    )
    assert (result["n"], result["accuracy"], result["chance"], result["wrong_video_accuracy"]) == (4, 0.25, 0.375, 0.5)
    assert (result["score"], result["unparsed"]) == (25.0, 2)
    assert {name: (row["n"], row["accuracy"], row["chance"]) for name, row in result["families"].items()} == {
        "colour": (2, 0.5, 0.25), "count": (2, 0.0, 0.5)}


def test_open_questions_are_scored_apart() -> None:
    asked = Item("1", "1.mp4", "What is it?", "a red ball", family="caption")
    result = summary((asked, "The red ball", None), (item("2", "colour", 4), "(B)", None))
    assert (result["accuracy"], result["wrong_video_accuracy"]) == (0.0, None)
    assert (result["open"]["exact_match"], result["open"]["families"]["caption"]["token_f1"]) == (1.0, 1.0)
    assert result["open"]["bleu_1"] == pytest.approx(2 / 3)  # "red" and "ball"; "The" is not "a"


def test_the_table_shows_every_family_and_what_failed() -> None:
    result = summary((item("1", "colour", 4), "(A) red", "(B)"), (item("2", "count", 4), None, None))
    result |= {"failures": [{"id": "2", "video": "2.mp4", "reason": "the file is gone"}], "missing_videos": ["2.mp4"]}
    text = io.StringIO()
    Console(width=120, file=text).print(render(result))
    shown = ("colour", "count", "25.0", "100.0", "the file is gone", "1 videos are missing: 2.mp4")
    assert all(word in text.getvalue() for word in shown)


# ---- several processes --------------------------------------------------------------------------------------------


def same_files(*folders: Path) -> bool:
    """Whether predictions and result are the same to the byte."""
    return all(len({(folder / name).read_bytes() for folder in folders}) == 1
               for name in ("predictions.jsonl", "result.json"))


def test_the_last_of_several_processes_writes_what_one_would_have_written(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path / "one")
    results = [run(model, config, data, tmp_path / "three", shard=Shard(rank, 3)) for rank in (2, 0, 1)]
    assert [result is None for result in results] == [True, True, False]
    assert same_files(tmp_path / "one", tmp_path / "three")


def test_more_processes_than_videos_leave_some_with_nothing_to_do(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path / "one")
    results = [run(model, config, data, tmp_path / "five", shard=Shard(rank, 5)) for rank in range(5)]
    assert results[4] is not None and same_files(tmp_path / "one", tmp_path / "five")


def test_processes_with_another_limit_are_refused_until_the_result_is_there(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path, shard=Shard(0, 2), limit=6)
    before = contents(tmp_path)
    with pytest.raises(AuroraError, match=r"items\.jsonl was made with other settings \(limit was 6, is 2\)"):
        run(model, config, data, tmp_path, shard=Shard(1, 2), limit=2)
    assert contents(tmp_path) == before
    whole = run(model, config, data, tmp_path, shard=Shard(1, 2), limit=6)
    assert whole is not None and whole["limit"] == 6
    assert [run(model, config, data, tmp_path, shard=Shard(rank, 2), limit=2)["limit"] for rank in range(2)] == [2, 2]


def test_merging_says_which_process_has_written_nothing(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path, shard=Shard(0, 2))
    with pytest.raises(AuroraError, match=r"of 15 items have no prediction yet.*nothing was written by 1 of 2"):
        merge(tmp_path)
    whole = run(model, config, data, tmp_path, shard=Shard(1, 2))
    (tmp_path / "result.json").unlink()
    assert merge(tmp_path) == whole


def test_parts_of_different_runs_are_not_merged(model, config, data, tmp_path) -> None:
    run(model, config, data, tmp_path, shard=Shard(0, 2))
    with pytest.raises(AuroraError, match=r"other settings than the rest \(keep_ratio was 0.5, is 0.25\)"):
        run(model, replace(config, keep_ratio=0.25), data, tmp_path, shard=Shard(1, 2))
    run(model, config, data, tmp_path, shard=Shard(1, 3))
    with pytest.raises(AuroraError, match="of 2 and of 3 processes"):
        merge(tmp_path)


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "a/b", "1/2/3", ""])
def test_a_shard_that_makes_no_sense_is_refused(text) -> None:
    with pytest.raises(AuroraError, match="RANK/WORLD"):
        Shard.parse(text)
