"""Builds of a store by several processes that may be killed at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from aurora.inference.index import INDEX, WatchTask, build_index, find_videos, watch_video
from aurora.inference.store import FilmStore
from aurora.inference.workers import WorkerModel
from aurora.registry import EXECUTOR

KILLS = int(os.environ.get("AURORA_INDEX_KILLS", "1"))


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Three videos, of which two differ in their suffixes alone."""
    folder = tmp_path / "videos"
    make_video(folder / "a" / "one.mp4", 24, seed=1)
    make_video(folder / "two.mp4", 24, seed=2)
    make_video(folder / "two.mkv", 16, seed=3)
    return folder


def build(videos: Path, store: Path, model: Path, *more: str) -> list[str]:
    """A build as a command."""
    return [sys.executable, "-m", "aurora", "index", "build", str(videos), "--store", str(store), "--model",
            str(model), "--threads", "1", "--json", *more]


def contents(store: FilmStore) -> dict[str, bytes]:
    return {name: store.path(name).read_bytes() for name in store.names()}


@pytest.mark.process
@pytest.mark.slow
def test_what_another_process_watches_is_left_to_it(videos: Path, model_folder: Path, tmp_path: Path) -> None:
    claims = tmp_path / "films" / INDEX / "claims"
    held = f"import sys\nfrom pathlib import Path\nfrom aurora.files import claimed\n" \
           f"with claimed(Path({str(claims)!r}), 'two.mp4') as free:\n" \
           f"    print(free, flush=True)\n    sys.stdin.read()\n"
    found = find_videos(videos, without=tmp_path / "films")
    store, model = FilmStore(tmp_path / "films"), WorkerModel(str(model_folder))
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"True\n"
        task = WatchTask(next(one for one in found if one.name == "two.mp4"), str(store.folder), model)
        assert watch_video(task).status == "busy"
        coming = build_index(found, store, model, EXECUTOR.build({"name": "serial"}))
        assert [next(coming).name for _ in range(2)] == ["a/one", "two.mkv"]
        process.kill()  # and what it leaves is watched here
        assert [(one.name, one.status) for one in coming] == [("two.mp4", "watched")]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("deaths", [2, pytest.param(1, marks=pytest.mark.skipif(
    "AURORA_LONG" not in os.environ, reason="like the other: AURORA_LONG=1 runs it"))])
def test_a_video_that_ends_its_process_is_watched_again_alone_and_does_not_stop_the_others(
        deaths: int, make_video: Callable[..., Path], videos: Path, model_folder: Path, tmp_path: Path) -> None:
    make_video(videos / "a" / "long.mp4", 800)
    store, killed = FilmStore(tmp_path / "films"), 0
    note, written = store.folder / INDEX / "begun" / hashlib.sha256(b"a/long").hexdigest()[:32], 0
    with subprocess.Popen(build(videos, store.folder, model_folder, "--fps", "8"), stdout=subprocess.PIPE) as process:
        while killed < deaths:
            assert process.poll() is None
            with suppress(FileNotFoundError):
                if (changed := note.stat().st_mtime_ns) != written:
                    os.kill(descendants(process.pid)[-1], signal.SIGKILL)
                    killed, written = killed + 1, changed
            time.sleep(0.002)
        told = {video["name"]: video for video in json.loads(process.communicate()[0])["videos"]}
    status = {name: video["status"] for name, video in told.items()}
    assert process.returncode == deaths - 1
    assert status == {"a/one": "watched", "two.mp4": "watched", "two.mkv": "watched",
                      "a/long": "watched" if deaths == 1 else "broken"}
    assert "SIGKILL" in told["a/long"]["detail"] or deaths == 1
    assert not note.exists()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have, the youngest last."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]
    return sorted([*children, *(far for child in children for far in descendants(child))])


@pytest.mark.process
@pytest.mark.slow
def test_a_build_that_is_killed_again_and_again_makes_the_same_store(
        make_video: Callable[..., Path], model_folder: Path, tmp_path: Path) -> None:
    """AURORA_INDEX_KILLS=20 for more kills."""
    count, folder, store = 4 * KILLS + 8, tmp_path / "videos", FilmStore(tmp_path / "films")
    for number in range(count):
        make_video(folder / f"{number:02}.mp4", 40, seed=number)
    command = build(folder, store.folder, model_folder, "--jobs", "2")
    seen: dict[str, int] = {}
    for kill in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            while len(store.names()) < min(4 * kill + 2, count - 2):
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        for name in store.names():
            changed = store.path(name).stat().st_mtime_ns
            assert seen.setdefault(name, changed) == changed
    done = subprocess.run([*command[:-2], "--executor", "serial"], stdout=subprocess.PIPE, check=False)
    told = json.loads(done.stdout)
    # a worker of the last kill may have ended its film before it ended
    assert done.returncode == 0 and told["counts"]["present"] >= len(seen)
    assert Counter(told["counts"]).total() == count
    assert {name: store.path(name).stat().st_mtime_ns for name in seen} == seen
    subprocess.run(build(folder, tmp_path / "whole", model_folder, "--executor", "serial"), check=True,
                   stdout=subprocess.DEVNULL)
    whole = contents(FilmStore(tmp_path / "whole"))
    assert len(whole) == count and contents(store) == whole
    assert not list((store.folder / INDEX / "begun").iterdir())


@pytest.mark.process
@pytest.mark.slow
def test_two_builds_at_once_share_the_videos(make_video: Callable[..., Path], model_folder: Path, tmp_path: Path
                                             ) -> None:
    for number in range(12):
        make_video(tmp_path / "videos" / f"{number:02}.mp4", 40, seed=number)
    command = build(tmp_path / "videos", tmp_path / "films", model_folder, "--executor", "serial")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as one, \
            subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        told = [json.loads(process.communicate()[0])["videos"] for process in (one, other)]
        assert one.returncode == other.returncode == 0
    watched = [video["name"] for each in told for video in each if video["status"] == "watched"]
    assert sorted(watched) == [f"{number:02}" for number in range(12)]  # each once
    assert all(video["status"] in ("watched", "present") for each in told for video in each)
    assert FilmStore(tmp_path / "films").names() == sorted(watched)
