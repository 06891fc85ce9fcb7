"""What is there again after a server ended, or was killed."""

from __future__ import annotations

import io
import signal
import threading
import time
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


def test_a_film_stays_as_it_was_when_it_cannot_be_extended(
    serve: Callable[..., Served], make_video: Callable[..., Path], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "a.mp4", 24)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:700])
    server = serve(tmp_path)
    film = server.watch(video, name="clip")
    answer = server.ask(film["id"], QUESTION, max_tokens=12)["answer"]

    def unharmed() -> None:
        told = server.client.get("/v1/films/clip").json()
        assert (told["status"], told["digest"], told["media"]) == ("ready", film["digest"], film["media"])
        assert told["error"] is None and "could not be extended" in told["warnings"][0]
        assert server.ask("clip", QUESTION, max_tokens=12)["answer"] == answer

    with broken.open("rb") as file:
        assert server.client.post("/v1/films/clip/extend", files={"file": file}).status_code == 202
    assert server.follow("clip")["status"] == "ready"
    unharmed()
    server.end(signal.SIGKILL)
    server.start()
    unharmed()
    with video.open("rb") as file:
        assert server.client.post("/v1/films/clip/extend", files={"file": file}).status_code == 202
    told = server.follow("clip")
    assert (told["status"], told["warnings"], told["frames"]) == ("ready", [], 2 * film["frames"])
    assert server.end() == 0


def test_what_is_remembered_of_a_film_that_is_being_watched_survives_a_kill(
    serve: Callable[..., Served], make_video: Callable[..., Path], library: VideoModel, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "a.mp4", 400)
    server = serve(tmp_path)
    server.watch(video, name="longer")
    server.client.post("/v1/films", json={"live": True, "name": "live"}).raise_for_status()
    picture = library.watch(video, frames=1).thumbnails[0].jpeg
    server.client.post("/v1/films/live/frame", content=picture).raise_for_status()
    for address, name in (("/v1/films", "new"), ("/v1/films/longer/extend", None)):
        with video.open("rb") as file:
            data = {"fps": "30", **({"name": name} if name else {})}
            server.client.post(address, files={"file": file}, data=data).raise_for_status()
    names = ("new", "longer", "live")
    deadline = time.monotonic() + 60
    while not server.client.get("/v1/films/new").json()["frames"] and time.monotonic() < deadline:
        time.sleep(0.02)
    for name in names:
        server.ask(name, f"Is {name} remembered?", max_tokens=1, remember=True)
    statuses = [server.client.get(f"/v1/films/{name}").json()["status"] for name in names]
    server.end(signal.SIGKILL)
    assert statuses == ["watching", "watching", "live"], "else this shows nothing"
    server.start()
    for name in names:
        told = server.follow(name)
        assert told["status"] == "ready"
        assert [turn["question"] for turn in told["turns"]] == [f"Is {name} remembered?"]
    assert server.client.get("/v1/films/new").json()["frames"] > 100
    assert server.end() == 0


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
