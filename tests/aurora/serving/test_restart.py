"""What is there again after a server ended, or was killed."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora.inference.film_file import read_film
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel, load
from aurora.model import AuroraModel
from aurora.serving.errors import ApiError
from aurora.serving.files import UploadedFiles
from aurora.weights.model_folder import save_model

from .conftest import Served

pytestmark = [pytest.mark.process, pytest.mark.slow]
QUESTION = "What is it?"


def test_films_and_files_survive_a_kill(
    serve: Callable[..., Served], library: VideoModel, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = (make_video(tmp_path / f"{seed}.mp4", 40, seed=seed) for seed in (1, 2))
    server = serve(tmp_path)
    answers = {}
    for name, video in (("first", first), ("other/second", second)):
        told = server.watch(video, name=name)
        answers[name] = server.ask(told["id"], QUESTION, max_tokens=12)["answer"]
    kept = server.client.post("/v1/files", files={"file": first.read_bytes()}, data={"purpose": "vision"}).json()
    with first.open("rb") as file:
        begun = server.client.post("/v1/films", files={"file": file}, data={"name": "begun", "fps": "8"}).json()
    assert begun["status"] in ("waiting", "watching")
    server.end(signal.SIGKILL)
    for path in server.store.glob("*.aurora"):
        read_film(path)  # none is torn

    server.start()
    assert server.client.get(f"/v1/files/{kept['id']}/content").content == first.read_bytes()
    for name, answer in answers.items():
        told = next(one for one in server.client.get("/v1/films").json()["data"] if one["name"] == name)
        assert server.ask(told["id"], QUESTION, max_tokens=12)["answer"] == answer
    told = server.follow(begun["id"])  # goes on by itself
    film = library.watch(first, fps=8.0)
    assert (told["status"], told["frames"]) == ("ready", film.frames)
    assert server.ask(begun["id"], QUESTION, max_tokens=12)["answer"] == film.ask(
        QUESTION, options=Generation(max_new_tokens=12))
    # frames that a live film was sent are saved when the server ends
    live = server.client.post("/v1/films", json={"live": True}).json()
    picture = film.thumbnails[0].jpeg
    server.client.post(f"/v1/films/{live['id']}/frame", content=picture).raise_for_status()
    assert server.end() == 0
    server.start()
    assert server.client.get(f"/v1/films/{live['id']}").json()["frames"] == 1
    assert server.end(signal.SIGINT) in (0, 130)


def test_streams_are_finished_before_the_server_ends(serve: Callable[..., Served], video: Path, tmp_path: Path) -> None:
    server = serve(tmp_path, "--max-new-tokens", "300")
    film_id = server.watch(video)["id"]
    got: list[str] = []
    begun = threading.Event()

    def stream() -> None:
        body = {"question": QUESTION, "max_tokens": 300, "stream": True}
        with server.client.stream("POST", f"/v1/films/{film_id}/ask", json=body) as answer:
            for line in answer.iter_lines():
                got.append(line)
                begun.set()

    reader = threading.Thread(target=stream)
    reader.start()
    begun.wait(60)
    server.process.terminate()
    reader.join(120)
    assert server.process.wait(120) == 0
    assert "event: done" in got


def test_a_film_of_another_model_is_shown_and_refused(
    serve: Callable[..., Served], make_model: Callable[..., AuroraModel], make_config: Any, video: Path, tmp_path: Path
) -> None:
    config = {"prompt": {"name": "generic"},
              "backbone": {"name": "rwkv6", "hidden_size": 32, "layers": 3, "head_size": 16}}
    save_model(make_model(**config), make_config(**config), tmp_path / "other")
    (tmp_path / "store").mkdir()
    load(tmp_path / "other").watch(video).save(tmp_path / "store" / "strange.aurora")
    (tmp_path / "store" / "torn.aurora").write_bytes(b"torn")
    server = serve(tmp_path)
    told = {film["name"]: film for film in server.client.get("/v1/films").json()["data"]}
    assert told["strange"]["status"] == "other_model" and "backbone" in told["strange"]["error"]
    assert told["torn"]["status"] == "damaged"
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["aurora"]
    asked = server.client.post(f"/v1/films/{told['strange']['id']}/ask", json={"question": "What?"})
    assert asked.status_code == 409 and "backbone" in asked.json()["error"]["message"]
    state = (tmp_path / "store" / "strange.aurora").read_bytes()
    assert server.client.post("/v1/films/import", files={"file": ("x", state)}).status_code == 409


def test_files_that_were_not_uploaded_to_their_end_are_swept_away(tmp_path: Path) -> None:
    files = UploadedFiles(tmp_path / "files", 100)
    kept = files.add(io.BytesIO(b"abc"), "a", "vision", 10)
    (tmp_path / "files" / "file-torn.part").write_bytes(b"x")
    (tmp_path / "files" / f"file-{'0' * 32}").write_bytes(b"x")
    again = UploadedFiles(tmp_path / "files", 100)
    assert again.all() == [kept]
    assert len([*(tmp_path / "files").iterdir()]) == 2
    with pytest.raises(ApiError, match="more than 2 bytes"):
        again.add(io.BytesIO(b"abc"), "a", "vision", 2)
    with pytest.raises(ApiError, match="at most 100 bytes of files"):
        again.add(io.BytesIO(b"x" * 98), "a", "vision", 1000)
    assert len([*(tmp_path / "files").iterdir()]) == 2
