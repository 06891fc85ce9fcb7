"""One request to many videos: real tars and lists, real processes, a real Ray, real kills."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.evaluation.prompts import CAPTION_VIDEO
from aurora.inference.captions import CaptionTask, Outcome, Request, caption_shard, caption_tasks
from aurora.inference.generation import Generation
from aurora.inference.video_lists import InputShard, input_shards
from aurora.inference.video_model import load
from aurora.inference.workers import WorkerModel

REQUEST = Request("What is it?", Generation(max_new_tokens=4), "jsonl", 2)
Run = Callable[..., list[Outcome]]


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Three videos in a folder."""
    for number in range(3):
        make_video(tmp_path / "videos" / f"{number}.mp4", 24, seed=number)
    return tmp_path / "videos"


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A WebDataset of samples: members by key and extension."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def shards(*inputs: Path | str, without: Path = Path("none"), videos_per_file: int = 256) -> list[InputShard]:
    return input_shards([str(one) for one in inputs], videos_per_file=videos_per_file, without=without)


@pytest.fixture
def run(model_folder: Path, tmp_path: Path) -> Run:
    """Answers for input shards into `out`, in this process."""

    def run(*inputs: Path, request: Request = REQUEST, videos_per_file: int = 256, **options: bool) -> list[Outcome]:
        tasks = caption_tasks(shards(*inputs, videos_per_file=videos_per_file), tmp_path / "out",
                              WorkerModel(str(model_folder)), request, **options)
        return list(map(caption_shard, tasks))

    return run


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_answers_are_those_of_asking_each_video(run: Run, videos: Path, model_folder: Path, tmp_path: Path) -> None:
    (made,) = run(videos)
    assert (made.name, made.status, made.answers, made.failed) == ("videos", "written", 3, False)
    model = load(model_folder)
    for number, row in enumerate(rows(tmp_path / "out" / "videos.jsonl")):
        film = model.watch(videos / f"{number}.mp4")
        assert row == {"id": str(number), "video": f"{number}.mp4", "question": "What is it?",
                       "answer": film.ask("What is it?", options=REQUEST.options), "frames": film.frames,
                       "seconds": film.seconds, "failure": None}


@pytest.mark.slow
def test_a_list_may_bring_questions_ids_and_ranges(run: Run, videos: Path, model_folder: Path, tmp_path: Path) -> None:
    listed = videos / "clips.jsonl"
    listed.write_text("".join(json.dumps(one) + "\n" for one in (
        {"video": "0.mp4", "question": "Who?", "id": 7}, {"video": "1.mp4", "range": [1, 2]},
        {"video": "none.mp4"}, {"path": "0.mp4"}, {"video": "2.mp4", "range": [2, 1]}, {"video": "http://a/b.mp4"})))
    (made,) = run(listed)
    who, part, missing, unnamed, turned, address = rows(tmp_path / "out" / "clips.jsonl")
    assert (who["id"], who["question"], who["frames"]) == ("7", "Who?", 6)
    film = load(model_folder).watch(videos / "1.mp4", start=1, stop=2)
    assert (part["frames"], part["seconds"]) == (film.frames, 1.0) and part["answer"] is not None
    assert missing["answer"] is None and missing["failure"] == "none.mp4 does not exist"
    assert "line 4: no path of a video under 'video'; there are path" in unnamed["failure"]
    assert "is not [start, stop]" in turned["failure"]
    assert "lists name files" in address["failure"]
    assert (made.answers, len(made.failures), made.failed) == (2, 4, True)


@pytest.mark.slow
def test_lines_about_one_video_are_counted_and_named_one_by_one(run: Run, videos: Path, tmp_path: Path) -> None:
    (videos / "1.mp4").write_bytes(b"")
    listed = videos / "clips.jsonl"
    listed.write_text("".join(json.dumps(one) + "\n" for one in (
        {"video": "0.mp4"}, {"video": "1.mp4", "question": "Who?"}, {"video": "1.mp4", "question": "Where?"},
        {"video": "1.mp4", "id": "mine"}, {"video": "1.mp4", "id": "mine"}, {"video": "0.mp4", "range": [2, 1]})))
    for made in (run(listed)[0], run(listed)[0]):  # as it was written, and as it is read again
        assert (made.answers, len(made.failures)) == (1, 5)
    assert [row["id"] for row in rows(tmp_path / "out" / "clips.jsonl")] == [
        "0.mp4#1", "1.mp4#1", "1.mp4#2", "mine", "mine", "0.mp4#2"]


@pytest.mark.slow
def test_the_videos_of_a_tar_are_answered_in_its_order(run: Run, videos: Path, tmp_path: Path) -> None:
    clips = [path.read_bytes() for path in sorted(videos.iterdir())]
    tar = write_tar(tmp_path / "s" / "000.tar", {
        "a": {"json": b'{"range": [0, 1]}', "mp4": clips[0]}, "b": {"json": b"{}", "jpg": b"not a video"},
        "c": {"mp4": clips[1]}, "d": {"mp4": b"broken"}, "e": {"json": b"[", "mp4": clips[2]}})
    run(tar)
    made = rows(tmp_path / "out" / "000.jsonl")
    assert [row["id"] for row in made] == ["a", "c", "d", "e"]
    assert [row["frames"] for row in made] == [2, 6, 0, 0]
    assert "d.mp4" in made[2]["failure"] and "record cannot be read" in made[3]["failure"]


@pytest.mark.slow
def test_a_torn_tar_gives_no_file_and_does_not_stop_the_others(run: Run, videos: Path, tmp_path: Path) -> None:
    clip = (videos / "0.mp4").read_bytes()
    whole = write_tar(tmp_path / "s" / "whole.tar", {"a": {"mp4": clip}})
    torn = tmp_path / "s" / "torn.tar"
    torn.write_bytes(whole.read_bytes()[: len(clip) // 2])
    twice = tmp_path / "s" / "twice.tar"
    with tarfile.open(twice, "w") as tar:
        tar.add(videos / "0.mp4", "a.mp4")
        tar.add(videos / "0.mp4", "a.mp4")
    made = {one.name: one.status for one in run(torn, twice, whole)}
    assert made == {"torn": "broken", "twice": "broken", "whole": "written"}
    assert not (tmp_path / "out" / "torn.jsonl").exists()


@pytest.mark.slow
def test_what_is_there_is_skipped_unless_its_input_changed(run: Run, videos: Path, tmp_path: Path,
                                                           make_video: Callable[..., Path]) -> None:
    def status() -> list[str]:
        return [one.status for one in run(videos, videos_per_file=2)]

    assert status() == ["written", "written"]
    assert status() == ["present", "present"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jsonl")) == ["videos-00000.jsonl",
                                                                               "videos-00001.jsonl"]
    make_video(videos / "3.mp4", 24)
    assert status() == ["present", "written"]
    (tmp_path / "out" / "videos-00000.jsonl").unlink()
    assert status() == ["written", "present"]


@pytest.mark.slow
def test_another_request_does_not_mix_with_what_is_there(run: Run, videos: Path, tmp_path: Path) -> None:
    run(videos)
    other = replace(REQUEST, question="Where?")
    with pytest.raises(AuroraError, match=r"question was 'What is it\?', is 'Where\?'.*--restart"):
        run(videos, request=other)
    assert run(videos, request=replace(other, format="parquet"), restart=True)[0].status == "written"
    assert [path.name for path in sorted((tmp_path / "out").glob("v*"))] == ["videos.parquet"]


@pytest.mark.slow
def test_failures_are_tried_again_when_asked_or_when_the_video_was_mended(run: Run, videos: Path) -> None:
    good = (videos / "1.mp4").read_bytes()
    (videos / "1.mp4").write_bytes(b"")
    assert run(videos)[0].failures == [("1.mp4", "1.mp4 is empty")]
    again = run(videos)[0]
    assert again.status == "present" and again.failed
    assert run(videos, retry=True)[0].status == "written"
    (videos / "1.mp4").write_bytes(good)
    assert run(videos)[0].status == "written" and not run(videos)[0].failed


def test_inputs_that_would_give_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "0.tar", {})
    names = [shard.name for shard in shards(tmp_path / "*" / "0.tar")]
    assert len(set(names)) == 2 and all(name.startswith("0~") for name in names)


@pytest.mark.parametrize(("word", "message"), [("none.tar", "does not exist"), ("notes.md", "is no video"),
                                               ("empty.txt", "no video is listed")])
def test_inputs_that_hold_no_videos_are_refused(word: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(AuroraError, match=message):
        shards(tmp_path / word)


def command(videos: Path, model_folder: Path, out: Path, *more: str) -> list[str]:
    return ["caption-many", str(videos), "--output", str(out), "--model", str(model_folder), "--max-new-tokens", "4",
            "--videos-per-file", "1", *more]


@pytest.mark.parametrize(("words", "message"), [
    (["--ray", "--devices", "cuda:0,cuda:1"], "with --ray it is cpu or cuda"),
    (["--devices", "cuda:77"], "cannot be used"),
    (["--question", " "], "the question is empty"),
    (["prompt=sandwich"], "begins with the question"),
    (["keep_raito=0.5"], "Did you mean 'keep_ratio'"),
])
def test_options_that_cannot_be_met_are_refused(words: list[str], message: str, videos: Path, model_folder: Path,
                                                tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(videos, model_folder, tmp_path / "out", *words)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


KILLS = int(os.environ.get("AURORA_CAPTION_KILLS", "1"))


@pytest.mark.process
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_gives_the_same_files(
        run: Run, make_video: Callable[..., Path], model_folder: Path, tmp_path: Path) -> None:
    """AURORA_CAPTION_KILLS=20 for more kills."""
    count, out = 3 * KILLS + 5, tmp_path / "killed"
    for number in range(count):
        make_video(tmp_path / "videos" / f"{number:02}.mp4", 40, seed=number)
    words = command(tmp_path / "videos", model_folder, out, "--jobs", "2", "--threads", "1")
    for kill in range(KILLS):
        with subprocess.Popen([sys.executable, "-m", "aurora", *words], stdout=subprocess.PIPE) as process:
            while len(list(out.glob("*.jsonl"))) < 3 * kill + 1:
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        for path in out.glob("*.jsonl"):
            assert rows(path)[0]["answer"] is not None
    assert main(words) == 0
    run(tmp_path / "videos", request=replace(REQUEST, question=CAPTION_VIDEO), videos_per_file=1)
    made = {path.name: path.read_text() for path in out.glob("*.jsonl")}
    assert len(made) == count
    assert made == {path.name: path.read_text() for path in (tmp_path / "out").glob("*.jsonl")}


@pytest.mark.skipif("AURORA_LONG" not in os.environ, reason="takes most of a minute: AURORA_LONG=1 runs it")
@pytest.mark.process
@pytest.mark.slow
def test_ray_writes_the_same_files_though_a_process_is_killed(
        make_video: Callable[..., Path], model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    for number in range(12):
        make_video(tmp_path / "videos" / f"{number:02}.mp4", 40, seed=number)
    (tmp_path / "videos" / "01.mp4").write_bytes(b"")
    words = command(tmp_path / "videos", model_folder, tmp_path / "one", "--format", "parquet")
    assert main(words) == 1
    again = [word.replace(str(tmp_path / "one"), str(tmp_path / "ray")) for word in words]
    # a process of its own: Ray leaves threads and files open that warnings are made of
    with subprocess.Popen([sys.executable, "-m", "aurora", *again, "--ray", "--jobs", "2", "--json"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}) as process:
        while not list((tmp_path / "ray").glob("*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(worker_of(process.pid), signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 1, err.decode()[-3000:]
    told = json.loads(out)
    # the process may have ended a file before it was killed
    assert {one["status"] for one in told} <= {"written", "present"}
    assert [video for video, _ in told[1]["failures"]] == ["01.mp4"]
    for number in range(12):
        tables = [pq.read_table(tmp_path / folder / f"videos-{number:05}.parquet").to_pylist()
                  for folder in ("one", "ray")]
        assert tables[0] == tables[1] and len(tables[0]) == 1


def worker_of(pid: int) -> int:
    """An actor of the Ray that a process has started."""
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker"):
            return pid
        waiting += [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]
    raise AssertionError("there is no actor")


def test_a_task_knows_its_files(tmp_path: Path) -> None:
    task = CaptionTask(InputShard("a-00001"), str(tmp_path), WorkerModel("none"), REQUEST)
    assert task.path == tmp_path / "a-00001.jsonl" and task.result() is None
