"""`aurora watch` on real files that grow, with a tiny untrained model."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aurora.cli import main
from aurora.inference.video_model import VideoModel

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(capsys):
    """(exit status, stdout, stderr) of `aurora watch`."""

    def run(*arguments):
        status = main(["watch", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def finished(video, tmp_path):
    """A film that nobody writes any more: five seconds."""
    path = tmp_path / "film.mp4"
    path.write_bytes(video.read_bytes())
    os.utime(path, (0, 0))
    return path


@pytest.fixture
def start(model_folder):
    """`aurora watch` in a process of its own, with the tiny model."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "aurora", "watch", *map(str, arguments), "--model", str(model_folder),
                   "--max-new-tokens", "4", "--json"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def stream(frames=40) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as file:
        made = file.add_stream("libx264", rate=8, options={"g": "8", "bf": "0"})
        made.width, made.height, made.pix_fmt = 48, 32, "yuv420p"
        for number in range(frames):
            grey = np.full((32, 48, 3), 5 * number % 256, np.uint8)
            file.mux(made.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(made.encode())
    return buffer.getvalue()


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.process
def test_a_finished_film_is_watched_saved_and_asked_again(run, finished, model_folder, tmp_path, capsys):
    saved = tmp_path / "film.aurora"
    status, out, _ = run(finished, "--model", model_folder, "--fps", "2", "--json", "--save", saved)
    assert status == 0
    told = lines(out)
    assert [line["event"] for line in told] == ["opened", "ended", "saved"]
    assert (told[-1]["frames"], told[-1]["file"]) == (10, str(saved))
    film = VideoModel.from_pretrained(model_folder).open(saved)
    assert film.frames == 10
    assert main(["ask", str(saved), "What is it?", "--model", str(model_folder), "--max-new-tokens", "4"]) == 0


@pytest.mark.process
def test_an_alert_is_a_line_with_its_second(run, finished, model_folder, monkeypatch):
    asked = []

    def ask(film, question, **_):
        asked.append(film.seconds)
        return "yes, it is" if film.seconds >= 2 else "no"

    monkeypatch.setattr("aurora.inference.film.Film.ask", ask)
    status, out, err = run(finished, "--model", model_folder, "--fps", "2", "--tell", "Is it red?", "--every", "1")
    assert (status, out) == (0, "0:02  alert: Is it red? yes, it is\n")
    assert asked[:5] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert "opened" in err and "ended" in err


@pytest.mark.process
def test_lines_of_standard_input_are_answered(start, finished):
    process = start(finished, "--ask-stdin")
    out, _ = process.communicate("What is it?\n\nAnd then?")
    answers = [line for line in lines(out) if line["event"] == "answer"]
    assert [line["question"] for line in answers] == ["What is it?", "And then?"]
    assert process.returncode == 0


@pytest.mark.process
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_what_was_seen_is_saved(start, tmp_path, number, status):
    growing, saved = tmp_path / "growing.ts", tmp_path / "film.aurora"
    growing.write_bytes(stream())
    process = start(growing, "--fps", "2", "--idle", "600", "--save", saved, "--save-every", "0.01")
    first = json.loads(process.stdout.readline())
    assert first["event"] == "opened"
    while not saved.exists():
        threading.Event().wait(0.05)
    process.send_signal(number)
    told = lines(process.communicate()[0])
    assert process.returncode == status
    assert told[-1]["event"] == "saved" and told[-1]["frames"] >= 1


@pytest.mark.process
def test_it_ends_after_the_seconds_that_are_given(start, tmp_path):
    growing = tmp_path / "growing.ts"
    growing.write_bytes(stream())
    process = start(growing, "--idle", "600", "--for", "10")
    told = lines(process.communicate()[0])
    assert process.returncode == 0
    assert all(line["event"] in ("opened", "ended") for line in told)


@pytest.mark.process
def test_what_was_seen_is_saved_when_a_source_breaks(run, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("aurora.inference.live.LiveSource.__iter__", broken)
    growing, saved = tmp_path / "growing.ts", tmp_path / "film.aurora"
    growing.write_bytes(b"")
    status, out, err = run(growing, "--model", model_folder, "--json", "--save", saved)
    assert status == 2
    assert "the camera is gone" in err
    assert lines(out)[-1]["event"] == "saved"
    assert VideoModel.from_pretrained(model_folder).open(saved).frames == 3


def test_the_source_is_never_replaced_by_its_film(run, finished, tmp_path):
    before = finished.read_bytes()
    status, _, err = run(finished, "--save", finished)
    assert status == 2 and "film.mp4 is the video itself, which the film would replace" in err
    assert finished.read_bytes() == before
    (tmp_path / "notes.txt").write_text("kept")
    status, _, err = run(finished, "--save", tmp_path / "notes.txt")
    assert status == 2 and "notes.txt is there already and is not a film; give the name of another file" in err


def test_an_animation_is_for_ask(run, tmp_path):
    first, second = (Image.new("RGB", (48, 32), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    status, _, err = run(tmp_path / "a.gif")
    assert status == 2 and "a.gif is an animated picture; aurora ask" in err


def broken(source):
    from aurora.errors import AuroraError

    for number in range(3):
        yield float(number), np.full((32, 48, 3), number, np.uint8)
    raise AuroraError("the camera is gone")


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "one source is watched, but 0 were given"), (["a.ts", "b.ts"], "2 were given"),
    (["-", "--ask-stdin"], "standard input is either"), (["ftp://host/"], "not opened by 'ftp'"),
    (["missing.ts"], "no such file, camera or address"), (["udp://:1", "--fps", "0"], "above 0"),
    (["udp://:1", "--tell", " "], "a standing question is empty"), (["udp://:1", "--save", "/dev/null/a"], "is a file"),
])
def test_what_cannot_be_watched_is_said_before_a_model_is_loaded(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2
    assert message in err
