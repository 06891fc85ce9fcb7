"""`aurora ask` with films that are saved and asked again, one by one or all of a store."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.inference.generation import Generation
from aurora.inference.store import FilmStore
from aurora.inference.video_model import load

SHORT = ("--max-new-tokens", "12")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], model_folder: Path):
    """(exit status, stdout, stderr) of `aurora ask`."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        status = main(["ask", *map(str, words), "--model", str(model_folder), *SHORT])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def store(model_folder: Path, make_video, tmp_path: Path) -> Path:
    model = load(model_folder)
    for number, name in enumerate(("one", "trips/two")):
        FilmStore(tmp_path / "films").save(model.watch(make_video(tmp_path / f"{number}.mp4", 8, seed=number)), name)
    return tmp_path / "films"


def test_a_film_is_saved_while_it_is_asked_and_answers_without_the_video(run, make_video, tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", 12)
    status, first, _ = run(video, "What moves?", "--save", tmp_path / "clip.aurora")
    assert status == 0 and first.strip()
    video.unlink()
    assert run(tmp_path / "clip.aurora", "What moves?")[:2] == (0, first)


def test_a_moment_is_asked_of_the_video_and_of_the_states_that_were_kept(run, make_video, tmp_path: Path) -> None:
    video, kept = make_video(tmp_path / "clip.mp4", 40), tmp_path / "clip.aurora"
    _, as_of_two, err = run(video, "What moves?", "--at", "2", "--fps", "2")
    assert "as of second 2\n" in err
    assert run(video, "What moves?", "--save", kept, "--checkpoint-seconds", "1", "--at", "2", "--fps", "2")[1] \
        == as_of_two != run(kept, "What moves?")[1]
    video.unlink()
    assert run(kept, "What moves?", "--at", "2.4")[1:] == (as_of_two, "as of second 2\n")


def test_one_film_or_all_of_a_store_are_asked(run, store: Path, model_folder: Path) -> None:
    model = load(model_folder)
    said = {name: FilmStore(store).open(model, name).ask("What moves?", options=Generation(max_new_tokens=12))
            for name in ("one", "trips/two")}
    assert run("What moves?", "--store", store)[1] == "".join(f"{name}: {text}\n" for name, text in said.items())
    assert run("What moves?", "--store", store, "--film", "trips/two")[1] == said["trips/two"] + "\n"


def test_a_film_that_cannot_be_asked_is_named_and_the_others_answer(run, store: Path, model_folder: Path) -> None:
    (store / "torn.aurora").write_bytes(b"torn")
    status, out, err = run("What moves?", "--store", store)
    assert status == 1 and [line.partition(":")[0] for line in out.splitlines()] == ["one", "trips/two"]
    assert "torn: " in err and "is not a saved film" in err
    assert run("What moves?", "--store", store, "--film", "torn")[0] == 2


@pytest.mark.parametrize(("words", "message"), [
    (("What?", "--store", "films", "--film", "tow"), "films has no film 'tow'. Known: one, trips/two"),
    (("What?", "--store", "films", "--film", "../one"), "'../one' cannot name a film"),
    (("What?", "--store", "nowhere"), "nowhere holds no film; `aurora index build FOLDER --store nowhere` makes them"),
    (("What?", "--store", "films", "--chat"), "--chat is about one film; choose one with --film: one, trips/two"),
    (("0.mp4", "What?", "--store", "films"), "leave out files and --save"),
    (("0.mp4", "What?", "--film", "one"), "give --store FOLDER"),
    (("films/one.aurora", "What?", "--fps", "2"), "watched before; --fps, --frames, --max-frames"),
    (("What?", "--store", "films", "--film", "one", "--fps", "5"), "films was watched before; --fps"),
    (("films/one.aurora", "What?", "sampling.fps=5"), "watched before; --fps"),
    (("films/one.aurora", "0.mp4", "What?"), "films/one.aurora is a saved film, which is asked alone, without 0.mp4"),
    (("0.mp4", "What?", "--with", "films/one.aurora"), "films/one.aurora is a saved film, which is asked alone"),
    (("films/one.aurora", "What?", "--at", "0.1"), "was not kept: watch with checkpoint_seconds"),
    (("0.mp4", "What?", "--at", "-1"), "at -1.0 is not a second of the film"),
    (("0.mp4", "What?", "--checkpoint-seconds", "2"), "keeps states in a film that is saved; give --save FILE"),
    (("films/one.aurora", "What?", "merge=pool"), "what differs: merge"),
    (("films/one.aurora", "What?", "dtype=bfloat16"), "what differs: weights, dtype"),
    (("0.mp4", "What?", "--save", "films"), "films is a folder; give the name of a file"),
    (("0.mp4", "What?", "--save", "./0.mp4"), "0.mp4 is the video itself, which the film would replace"),
    (("0.mp4", "What?", "--save", "1.mp4"), "1.mp4 is there already and is not a film"),
    (("http://127.0.0.1:1/0.mp4", "What?"), "http://127.0.0.1:1/0.mp4 cannot be downloaded"),
])
def test_what_cannot_be_asked_is_one_clear_error(
    run, store: Path, words, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = [path.read_bytes() for path in sorted(tmp_path.glob("*.mp4"))]
    status, _, err = run(*words)
    assert status == 2 and message in err
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.mp4"))] == videos


def test_a_saved_film_is_described(run, store: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", str(model_folder), *SHORT)
    assert main(["caption", str(store / "one.aurora"), "--question", "What moves?", *options]) == 0
    assert capsys.readouterr().out == run("What moves?", "--store", store, "--film", "one")[1]
    assert main(["caption", str(store / "one.aurora"), *options]) == 0


@pytest.mark.parametrize("place", ["here.aurora", "new.film", "empty"])
def test_a_film_is_saved_in_place_of_a_film_or_of_nothing(run, store: Path, place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for _ in range(2):
        assert run(tmp_path / "0.mp4", "What?", "--save", tmp_path / place)[0] == 0
    assert run(tmp_path / place, "What?", "--save", tmp_path / place)[0] == 0


def test_a_video_is_asked_by_its_address(run, make_video, tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", 12)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            answer = run(f"http://127.0.0.1:{server.server_port}/clip.mp4", "What moves?")
        finally:
            server.shutdown()
    assert answer[:2] == run(video, "What moves?", "prompt=generic")[:2] and answer[0] == 0


def test_a_store_never_leads_out_of_its_folder(store: Path) -> None:
    films = FilmStore(store)
    for name in ("..", "../a", "a/../b", "/etc/passwd", ".hidden", "a/.b", "", "a//b", "a\\b", "a\n", " a", "a/",
                 "a.aurora/b", "a.AURORA", "字" * 120):
        with pytest.raises(ValueError, match="cannot name a film"):
            films.path(name)
    films.remove("trips/two")
    assert films.names() == ["one"] and not (store / "trips").exists()
