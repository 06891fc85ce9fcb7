"""The service and `aurora index` on one store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel

from .conftest import ROOT, Served


@pytest.mark.process
@pytest.mark.slow
def test_a_server_that_runs_answers_about_the_films_that_an_index_makes(
        serve: Callable[..., Served], library: VideoModel, generic_folder: Path, make_video: Callable[..., Path],
        tmp_path: Path) -> None:
    server = serve(tmp_path)
    clip = make_video(tmp_path / "videos" / "trip" / "a b.mp4", 24)
    assert main(["index", "build", str(tmp_path / "videos"), "--store", str(server.store), "--model",
                 str(generic_folder), "--executor", "serial"]) == 0
    (film,) = server.client.get("/v1/films").json()["data"]
    assert (film["name"], film["status"], film["media"]) == ("trip/a b", "ready", ["a b.mp4"])
    assert "film:trip/a b" in [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    expected = library.watch(clip).ask("What?", options=Generation(max_new_tokens=8))
    assert server.ask(film["id"], "What?", max_tokens=8)["answer"] == expected
    uploaded = server.watch(clip, name="uploaded")
    assert main(["index", "remove", "trip/a b", "--store", str(server.store)]) == 0
    assert [one["name"] for one in server.client.get("/v1/films").json()["data"]] == [uploaded["name"]]
    assert server.client.post(f"/v1/films/{film['id']}/ask", json={"question": "What?"}).status_code == 404
    assert server.end() == 0


@pytest.mark.process
@pytest.mark.slow
def test_a_film_that_another_program_replaces_is_answered_as_it_is_now(
        serve: Callable[..., Served], library: VideoModel, make_video: Callable[..., Path], tmp_path: Path) -> None:
    server = serve(tmp_path)
    films = [library.watch(make_video(tmp_path / f"{seed}.mp4", 24, seed=seed)) for seed in (1, 2)]
    answers = [film.ask("What?", options=Generation(max_new_tokens=8)) for film in films]
    assert answers[0] != answers[1]
    for film, answer in zip(films, answers, strict=True):
        film.save(server.store / "clip.aurora")
        assert server.ask("clip", "What?", max_tokens=8)["answer"] == answer
    server.ask("clip", "One?", max_tokens=2, remember=True)
    (turn,) = library.open(server.store / "clip.aurora").turns
    assert turn.question == "One?"
    assert library.open(server.store / "clip.aurora").id == films[1].id, "what was replaced is not written back"

    # while frames are added to it
    server.client.post("/v1/films/clip/frame", content=films[0].thumbnails[0].jpeg).raise_for_status()
    films[0].save(server.store / "clip.aurora")
    server.end()
    assert library.open(server.store / "clip.aurora").id == films[0].id
    server.start()
    assert server.ask("clip", "What?", max_tokens=8)["answer"] == answers[0]
    second = subprocess.run([sys.executable, "-m", "aurora", "serve", "--store", str(server.store), "--port", "0"],
                            capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert second.returncode == 2 and "another server serves the store" in second.stderr
    assert server.end() == 0
