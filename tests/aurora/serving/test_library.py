"""The service and `aurora index` on one store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel

from .conftest import Served


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
