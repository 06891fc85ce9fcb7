"""Watching a folder of videos into a store, in this process: real videos, names, what is skipped, the commands."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.inference.index import INDEX, Outcome, build_index, film_names, find_videos
from aurora.inference.store import FilmStore
from aurora.inference.video_lists import input_shards
from aurora.inference.video_model import load
from aurora.inference.workers import WorkerModel
from aurora.registry import EXECUTOR

Films = Callable[..., list[Outcome]]
PARTS = st.lists(st.text("aAß. ~[\n", min_size=1, max_size=5).filter(lambda part: part not in (".", "..")),
                 min_size=1, max_size=2)


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Three videos, of which two differ in their suffixes alone."""
    folder = tmp_path / "videos"
    make_video(folder / "a" / "one.mp4", 24, seed=1)
    make_video(folder / "two.mp4", 24, seed=2)
    make_video(folder / "two.mkv", 16, seed=3)
    return folder


@pytest.fixture
def watch(videos: Path, model_folder: Path, tmp_path: Path) -> Films:
    """Watches the videos into the store, one after the other, in this process."""

    def watch(*overrides: str, checkpoint_seconds: float | None = None) -> list[Outcome]:
        store = FilmStore(tmp_path / "films")
        made = build_index(find_videos(videos, without=store.folder), store, WorkerModel(str(model_folder), overrides),
                           EXECUTOR.build({"name": "serial"}), checkpoint_seconds=checkpoint_seconds)
        return list(made)

    return watch


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in outcomes}


def test_films_are_named_after_their_videos_without_the_suffix() -> None:
    assert film_names(["a/b.mp4", "c.webm", "c.d.mkv"]) == ["a/b", "c", "c.d"]


def test_two_files_that_differ_in_the_suffix_alone_keep_it() -> None:
    assert film_names(["a.mp4", "a.mkv", "b/a.mp4"]) == ["a.mp4", "a.mkv", "b/a"]
    assert film_names(["a.mp4", "a.mkv", "a.mp4.webm"]) == ["a.mp4", "a.mkv", "a.mp4.webm"]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@example(["x.aurora/a.mp4", "x.mp4", "x.AURORA.mp4", "x.aurora.mp4"])
@example(["日" * 80 + ".mp4", "日" * 81 + ".mp4"])
@example(["a" * 140 + ".mp4", "a" * 141 + ".mp4", "..mp4", "a:b.mp4", "a_b.mp4"])
@given(st.lists(PARTS.map("/".join), unique=True, max_size=6))
def test_whatever_files_are_called_every_one_has_a_name_of_its_own_that_a_store_takes(files: list[str]) -> None:
    names = film_names(files)
    for name in names:
        assert len(f".{FilmStore('store').path(name).name}.tmp".encode()) <= 255  # what a disk takes
    assert len({name.casefold() for name in names}) == len(files)


def test_what_is_a_video_is_decided_by_its_content_or_its_name(videos: Path) -> None:
    (videos / "two.mp4").rename(videos / "two")
    (videos / "broken.mp4").write_bytes(b"nothing")
    (videos / "notes.txt").write_text("hello")
    (videos / ".hidden.mp4").write_bytes(b"nothing")
    (videos / "films").mkdir()
    (videos / "films" / "old.mp4").write_bytes(b"nothing")
    found = find_videos(videos, without=videos / "films")
    assert [video.name for video in found] == ["a/one", "broken", "two", "two.mkv"]


def test_links_to_folders_are_followed_once_and_links_to_nothing_are_named(watch: Films, videos: Path, tmp_path: Path,
                                                                            make_video: Callable[..., Path]) -> None:
    make_video(tmp_path / "other" / "deep" / "three.mp4", 24, seed=5)
    (tmp_path / "other" / "back").symlink_to(videos)
    (videos / "0").symlink_to(videos / "a")
    (videos / "a" / "loop").symlink_to(videos)
    (videos / "a" / "other").symlink_to(tmp_path / "other")
    (videos / "four.mp4").symlink_to(tmp_path / "other" / "deep" / "three.mp4")
    (videos / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (videos / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    made = {outcome.name: outcome for outcome in watch()}
    assert statuses(list(made.values())) == {"a/one": "watched", "two.mp4": "watched", "two.mkv": "watched",
                                             "a/other/deep/three": "watched", "four": "watched", "gone": "broken"}
    assert str(videos / "gone.mp4") in made["gone"].detail
    assert len(input_shards([str(videos)], videos_per_file=9, without=tmp_path / "out")[0].entries) == 6


def test_a_film_keeps_its_name_when_a_file_comes_or_goes_that_differs_in_the_suffix_alone(
    watch: Films, videos: Path, tmp_path: Path
) -> None:
    (videos / "two.mkv").rename(tmp_path / "two.mkv")
    assert statuses(watch()) == {"a/one": "watched", "two": "watched"}
    (tmp_path / "two.mkv").rename(videos / "two.mkv")
    assert statuses(watch()) == {"a/one": "present", "two": "present", "two.mkv": "watched"}
    (videos / "two.mp4").unlink()
    assert statuses(watch()) == {"a/one": "present", "two.mkv": "present"}
    assert FilmStore(tmp_path / "films").names() == ["a/one", "two", "two.mkv"]


def test_a_folder_without_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="holds no video file"):
        find_videos(tmp_path, without=tmp_path / "films")
    with pytest.raises(AuroraError, match="does not exist"):
        find_videos(tmp_path / "none", without=tmp_path / "films")


@pytest.mark.slow
def test_a_film_of_the_store_is_that_of_watching(watch: Films, videos: Path, model_folder: Path, tmp_path: Path
                                                 ) -> None:
    watch()
    model = load(model_folder)
    film = FilmStore(tmp_path / "films").open(model, "a/one")
    assert film.id == model.watch(videos / "a" / "one.mp4").id


@pytest.mark.slow
def test_what_stands_is_skipped_and_what_changed_is_watched_again(watch: Films, videos: Path,
                                                                  make_video: Callable[..., Path]) -> None:
    assert set(statuses(watch()).values()) == {"watched"}
    assert set(statuses(watch()).values()) == {"present"}
    make_video(videos / "two.mkv", 20, seed=9)
    assert statuses(watch()) == {"a/one": "present", "two.mp4": "present", "two.mkv": "watched"}
    assert set(statuses(watch("keep_ratio=0.25")).values()) == {"watched"}
    assert set(statuses(watch("keep_ratio=0.25", "sampling.fps=1")).values()) == {"watched"}
    assert set(statuses(watch("keep_ratio=0.25", "sampling.fps=1", checkpoint_seconds=1.0)).values()) == {"watched"}
    assert set(statuses(watch("keep_ratio=0.25", "sampling.fps=1", checkpoint_seconds=1.0)).values()) == {"present"}


@pytest.mark.slow
def test_broken_videos_are_listed_and_the_others_watched(watch: Films, videos: Path) -> None:
    (videos / "empty.mp4").write_bytes(b"")
    whole = (videos / "two.mkv").read_bytes()
    (videos / "two.mkv").write_bytes(whole[: len(whole) // 2])
    made = {outcome.name: outcome for outcome in watch()}
    assert statuses(list(made.values())) == {"a/one": "watched", "two.mp4": "watched", "two.mkv": "broken",
                                             "empty": "broken"}
    assert "is empty" in made["empty"].detail and "truncated" in made["two.mkv"].detail


@pytest.mark.slow
def test_a_film_that_stands_is_kept_when_its_video_breaks(watch: Films, videos: Path, tmp_path: Path) -> None:
    watch()
    before = FilmStore(tmp_path / "films").info("a/one")
    (videos / "a" / "one.mp4").write_bytes(b"")
    assert statuses(watch())["a/one"] == "broken"
    assert FilmStore(tmp_path / "films").info("a/one") == before


@pytest.mark.slow
def test_a_film_of_something_else_is_not_replaced(watch: Films, videos: Path, model_folder: Path, tmp_path: Path
                                                  ) -> None:
    store, model = FilmStore(tmp_path / "films"), load(model_folder)
    other = model.watch(videos / "two.mp4", videos / "two.mkv")
    store.save(other, "a/one")
    assert statuses(watch())["a/one"] == "taken"
    assert store.info("a/one")["id"] == other.id


@pytest.mark.slow
def test_videos_of_two_folders_do_not_replace_each_others_films(videos: Path, model_folder: Path, tmp_path: Path,
                                                               make_video: Callable[..., Path]) -> None:
    store = FilmStore(tmp_path / "films")
    make_video(tmp_path / "others" / "two.mp4", 24, seed=8)

    def build(folder: Path) -> dict[str, Outcome]:
        found = find_videos(folder, without=store.folder)
        return {outcome.name: outcome for outcome in build_index(found, store, WorkerModel(str(model_folder), ()),
                                                                 EXECUTOR.build({"name": "serial"}))}

    (videos / "two.mkv").unlink()
    build(videos)
    before = store.info("two")
    other = build(tmp_path / "others")["two"]
    assert (other.status, store.info("two")) == ("taken", before)
    assert other.detail == f"the store has a film of this name, of {videos / 'two.mp4'}"
    videos.rename(tmp_path / "moved")  # the same videos elsewhere
    assert {name: outcome.status for name, outcome in build(tmp_path / "moved").items()} == {
        "a/one": "present", "two": "present"}
    make_video(tmp_path / "moved" / "two.mp4", 16, seed=8)
    assert build(tmp_path / "moved")["two"].status == "watched"


@pytest.mark.slow
def test_a_film_that_cannot_be_written_does_not_stop_the_others(watch: Films, videos: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "a").write_text("a file where a folder is needed")
    (films / "two.mkv.aurora").mkdir()
    (videos / "two.aurora").mkdir()
    (videos / "two.mkv").rename(videos / "two.aurora" / "b.mkv")
    (videos / "c.mkv").write_bytes((videos / "two.mp4").read_bytes())
    (films / "c.aurora").mkdir()
    made = watch()
    names = [outcome.name for outcome in made if outcome.status == "watched"]
    assert "two" in names and len(names) == 2
    assert statuses(made)["a/one"] == "broken" and statuses(made)["c"] == "taken"
    assert FilmStore(films).names() == sorted(names) and set(statuses(watch())) == set(statuses(made))


@pytest.mark.slow
def test_a_damaged_film_is_made_again(watch: Films, tmp_path: Path) -> None:
    watch()
    (tmp_path / "films" / "a" / "one.aurora").write_bytes(b"torn")
    assert statuses(watch()) == {"a/one": "watched", "two.mp4": "present", "two.mkv": "present"}


@pytest.mark.slow
def test_a_second_build_reads_only_what_is_new(watch: Films, videos: Path) -> None:
    watch()
    path = videos / "two.mp4"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)  # what would be found broken if it were read
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert set(statuses(watch()).values()) == {"present"}
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert statuses(watch())["two.mp4"] == "broken"


@pytest.mark.slow
def test_a_video_that_was_only_copied_is_not_watched_again(watch: Films, videos: Path, tmp_path: Path) -> None:
    watch()
    film = tmp_path / "films" / "a" / "one.aurora"
    before = film.stat().st_mtime_ns
    os.utime(videos / "a" / "one.mp4")
    assert set(statuses(watch()).values()) == {"present"} and film.stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_was_watched_when_everything_died_is_watched_last(watch: Films, tmp_path: Path) -> None:
    note = tmp_path / "films" / INDEX / "begun" / hashlib.sha256(b"a/one").hexdigest()[:32]
    note.parent.mkdir(parents=True)
    note.write_text("a/one")
    assert [outcome.name for outcome in watch()][-1] == "a/one" and not note.exists()


@pytest.mark.slow
def test_the_commands_list_show_and_remove_what_was_built(watch: Films, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    watch(checkpoint_seconds=1.0)
    store = ["--store", str(tmp_path / "films")]
    assert main(["index", "list", *store, "--json"]) == 0
    assert {name: row["frames"] for name, row in json.loads(capsys.readouterr().out).items()} == {
        "a/one": 6, "two.mkv": 4, "two.mp4": 6}
    assert main(["index", "show", "a/one", *store]) == 0
    shown = capsys.readouterr().out
    assert "one.mp4 from 0:00, fps 2.0" in shown and "6 frames" in shown and "weights" in shown
    assert main(["index", "remove", "a/one", "nowhere", *store]) == 2
    assert "has no film 'nowhere'" in capsys.readouterr().err
    assert main(["index", "remove", "a/one", "two.mp4", *store]) == 0
    capsys.readouterr()
    (tmp_path / "films" / "torn.aurora").write_bytes(b"torn")
    assert main(["index", "list", *store]) == 1
    listed = capsys.readouterr().out
    assert "two.mkv" in listed and "a/one" not in listed and "is not a saved film" in listed
    assert main(["index", "list", "--store", str(tmp_path / "flims")]) == 2
    assert "flims does not exist" in capsys.readouterr().err


def test_a_film_says_that_a_limit_left_frames_out(watch: Films) -> None:
    details = {outcome.name: outcome.detail for outcome in watch("sampling.max_frames=4")}
    assert details == {"a/one": "4 frames, one every 0.75 s", "two.mp4": "4 frames, one every 0.75 s", "two.mkv": ""}


@pytest.mark.parametrize(("words", "message"), [
    (["--devices", "cpu,cpu", "--jobs", "1"], "leaves some of the 2 --devices without a process"),
    (["--devices", "cuda:77"], "cannot be used"),
    (["--part", "3/3"], "is not K/N"),
    (["--executor", "slurm"], "--part"),
    (["--executor", "serial", "--jobs", "2"], "are for --executor process"),
    (["--fps", "1", "--frames", "2"], "exclude each other"),
    (["keep_raito=0.5"], "Did you mean 'keep_ratio'"),
    (["executor.wrokers=2"], "has no option 'wrokers'"),
])
def test_options_that_cannot_be_met_are_refused(words: list[str], message: str, videos: Path, model_folder: Path,
                                                tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "build", str(videos), "--store", str(tmp_path / "films"), "--model", str(model_folder),
                 *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_broken_video_makes_the_status_of_the_build_1(videos: Path, model_folder: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "broken.mp4").write_bytes(b"no video")
    command = ["index", "build", str(videos), "--store", str(tmp_path / "films"), "--model", str(model_folder),
               "--executor", "serial"]
    assert main([*command, "--part", "0/2"]) + main([*command, "--part", "1/2"]) == 1
    assert "broken: " in capsys.readouterr().out
    assert main(command) == 1
    assert "0 watched (0:00 of video, 0 frames), 3 stood already, 1 failed" in capsys.readouterr().out


def test_films_are_listed_while_folders_beside_them_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "trips").mkdir()
    (tmp_path / "trips" / "one.aurora").write_bytes(b"")
    (tmp_path / "folder.aurora").mkdir()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for name in (".service", "trips"):
                with tempfile.TemporaryDirectory(dir=tmp_path / name) as folder:
                    Path(folder, "deep", "deeper").mkdir(parents=True)

    (tmp_path / ".service").mkdir()
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert all(FilmStore(tmp_path).names() == ["trips/one"] for _ in range(3000))
    finally:
        ended.set()
        for worker in workers:
            worker.join()
