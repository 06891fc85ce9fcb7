"""Films of a service in this process."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora.inference.film import Film
from aurora.inference.video_model import VideoModel
from aurora.serving.errors import ApiError
from aurora.serving.film_routes import router
from aurora.serving.films import ROUTES, Films, id_of
from aurora.serving.metrics import Metrics
from aurora.serving.settings import Settings

testclient = pytest.importorskip("starlette.testclient")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def client(library: VideoModel, store: Path) -> Iterator[Any]:
    from aurora.serving.app import create_app

    app = create_app(Settings.of(store=str(store)), library)
    with testclient.TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def clip(library: VideoModel, video: Path) -> Film:
    return library.watch(video)


def param(answer: Any) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["error"]["param"]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_could_not_be_kept_is_not_remembered(client: Any, store: Path, clip: Film, monkeypatch: pytest.MonkeyPatch
                                                  ) -> None:
    clip.save(store / "kept.aurora")
    question = {"question": "What is it?", "max_tokens": 8}
    before = client.post("/v1/films/kept/ask", json=question).json()
    with monkeypatch.context() as patched:
        patched.setattr("aurora.inference.store.FilmStore.save", full)
        assert client.post("/v1/films/kept/ask", json={**question, "remember": True}).status_code == 507
    assert client.get("/v1/films/kept").json()["turns"] == []
    assert client.post("/v1/films/kept/ask", json=question).json() == before
    assert client.post("/v1/films/kept/ask", json={**question, "remember": True}).status_code == 200
    assert len(client.get("/v1/films/kept").json()["turns"]) == 1


def test_a_live_film_forgets_what_could_not_be_kept(client: Any, clip: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    client.post("/v1/films", json={"live": True, "name": "live"}).raise_for_status()
    client.post("/v1/films/live/frame", content=clip.thumbnails[0].jpeg).raise_for_status()
    with monkeypatch.context() as patched:
        patched.setattr("aurora.inference.store.FilmStore.save", full)
        asked = client.post("/v1/films/live/ask", json={"question": "What?", "max_tokens": 1, "remember": True})
    assert asked.status_code == 507 and client.get("/v1/films/live").json()["turns"] == []
    client.delete("/v1/films/live").raise_for_status()


def test_an_exchange_is_remembered_by_the_film_that_was_asked(
        library: VideoModel, make_video: Callable[..., Path], tmp_path: Path) -> None:
    asked, other = (library.watch(make_video(tmp_path / f"{seed}.mp4", 24, seed=seed)) for seed in (1, 2))
    films = Films(library, Settings.of(store=str(tmp_path / "store")), Metrics())
    path = films.store.path("clip")

    def turns() -> list[str]:
        return [turn.question for turn in library.open(path).turns]

    other.save(path)
    with pytest.raises(ApiError, match="replaced while the question was answered") as raised:
        asyncio.run(films.remember("clip", "One?", "Yes.", asked.media))
    assert (raised.value.status_code, turns()) == (409, [])
    longer = asked.fork()
    longer.extend(tmp_path / "2.mp4")
    longer.save(path)
    asyncio.run(films.remember("clip", "Two?", "Yes.", asked.media))
    assert turns() == ["Two?"]


def test_a_film_that_was_watched_further_meanwhile_is_not_overwritten(
        library: VideoModel, make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an extension is saved after the film was opened to be remembered, and before that is saved."""
    film = library.watch(make_video(tmp_path / "1.mp4", 24, seed=1))
    films = Films(library, Settings.of(store=str(tmp_path / "store")), Metrics())
    film.save(films.store.path("clip"))
    longer = film.fork()
    longer.extend(make_video(tmp_path / "2.mp4", 24, seed=2))
    save = films._save_over

    def late(*given: Any) -> None:
        films.save(longer, "clip")
        save(*given)

    monkeypatch.setattr(films, "_save_over", late)
    with pytest.raises(ApiError, match="watched further"):
        asyncio.run(films.remember("clip", "One?", "Yes.", film.media))
    assert library.open(films.store.path("clip")).frames == longer.frames > film.frames


def test_a_stop_string_is_matched_in_what_is_shown(client: Any, store: Path, clip: Film) -> None:
    clip.save(store / "stopped.aurora")
    question = {"question": "Describe the video in detail.", "max_tokens": 16}
    whole = client.post("/v1/films/stopped/ask", json=question).json()["answer"]
    first = client.post("/v1/films/stopped/ask", json={**question, "stop": [" "]}).json()["answer"]
    assert first and first == whole.split(" ")[0]


def test_every_route_of_a_film_is_known() -> None:
    ends = {route.path.rpartition("}/")[2] for route in router.routes if "}/" in route.path}
    assert {*ends, "patches"} == {*ROUTES}


def test_a_film_that_is_named_like_a_route_is_reached_by_its_id(client: Any, store: Path, clip: Film) -> None:
    for name in ("a/b", "a/b/state", "ask"):
        clip.save(store / f"{name}.aurora")
        assert client.get(f"/v1/films/{id_of(name)}").json()["name"] == name
        assert client.get(f"/v1/films/{id_of(name)}/thumbnails").status_code == 200
    assert client.get("/v1/films/ask").json()["name"] == "ask"
    for end in ROUTES:
        body = {"live": True, "name": f"new/{end}"}
        assert param(client.post("/v1/films", json=body)) == (400, "name")
    assert client.post("/v1/films/a/b/fork", json={"name": "state"}).status_code == 201


@pytest.mark.parametrize(("method", "end"), [
    ("GET", "ask"), ("DELETE", "ask"), ("POST", "events"), ("DELETE", "events"), ("GET", "frame"), ("PUT", "state"),
    ("DELETE", "patches")])
def test_a_route_of_a_film_has_its_own_methods(client: Any, method: str, end: str) -> None:
    answer = client.request(method, f"/v1/films/x/{end}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


def test_a_film_that_has_seen_nothing_waits(client: Any, clip: Film) -> None:
    made = client.post("/v1/films", json={"live": True, "name": "empty"}).json()
    assert (made["status"], made["frames"], made["progress"]) == ("waiting", 0, 0.0)
    asked = client.post("/v1/films/empty/ask", json={"question": "What?"})
    assert asked.status_code == 409 and "nothing of the film was seen yet" in asked.json()["error"]["message"]
    assert "film:empty" not in [model["id"] for model in client.get("/v1/models").json()["data"]]
    with open(os.devnull, "rb") as nothing:
        assert client.post("/v1/films/empty/extend", files={"file": nothing}).status_code == 422
    client.post("/v1/films/empty/frame", content=clip.thumbnails[0].jpeg).raise_for_status()
    assert client.get("/v1/films/empty").json()["status"] == "live"
    client.delete("/v1/films/empty").raise_for_status()


def test_a_live_film_takes_no_sampling(client: Any) -> None:
    for field in ("fps", "frames", "max_frames"):
        assert param(client.post("/v1/films", json={"live": True, field: 2})) == (400, field)


def test_a_form_holds_one_file(client: Any, clip: Film, tmp_path: Path) -> None:
    clip.save(tmp_path / "film.aurora")
    state = (tmp_path / "film.aurora").read_bytes()
    for path in ("/v1/files", "/v1/films/import"):
        twice = client.post(path, files=[("file", ("a", state)), ("file", ("b", state))])
        assert param(twice) == (400, "file"), path
    assert client.get("/v1/files").json()["data"] == []
    assert client.post("/v1/films", files=[("file", b"a"), ("file", b"b")]).status_code == 400


@pytest.mark.parametrize(("path", "body", "named"), [
    ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "stop": ["a", 3]}, "stop[1]"),
    ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "stop": 3}, "stop"),
    ("chat/completions", {"messages": ["a"]}, "messages[0]"),
    ("chat/completions", {"messages": [{"role": "user", "contentt": "a"}]}, "messages[0].contentt"),
    ("responses", {"input": []}, "input"), ("responses", {"input": 3}, "input"),
    ("responses", {"input": " "}, "input"),
    ("responses", {"input": [{"role": "tool"}], "instructions": "a"}, "input[0]"),
    ("responses", {"input": [{"type": "reasoning"}, {"type": "function_call", "name": "a"}]}, "input[1]"),
])
def test_a_wrong_field_is_named_as_it_was_sent(client: Any, path: str, body: dict[str, Any], named: str) -> None:
    answer = client.post(f"/v1/{path}", json={"model": "aurora", **body})
    assert param(answer) == (400, named), answer.text
    assert "None" not in answer.json()["error"]["message"]


def test_an_answer_says_that_a_video_was_read_thinly(client: Any, store: Path, library: VideoModel, clip: Film,
                                                     make_video: Callable[..., Path], tmp_path: Path) -> None:
    library.watch(make_video(tmp_path / "a.mp4", 80), fps=4.0, max_frames=5).save(store / "thin.aurora")
    clip.save(store / "whole.aurora")
    said = ["the video is longer than 5 frames at 4 a second: one was read every 2 s"]
    for path, given in (("chat/completions", {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 1}),
                        ("responses", {"input": "What?", "max_output_tokens": 1})):
        body = {"model": "film:thin", **given}
        assert client.post(f"/v1/{path}", json=body).json()["warnings"] == said
        assert client.post(f"/v1/{path}", json={**body, "stream": True}).text.count(f'"{said[0]}"') == 1
        assert "warnings" not in client.post(f"/v1/{path}", json={**body, "model": "film:whole"}).json()
