"""A real server on loopback, and real clients."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
import torch
from openai import OpenAI
from PIL import Image

from aurora.inference.film_file import read_film, write_film
from aurora.inference.generation import Generation
from aurora.inference.reading import Memory
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Turn

from .conftest import TOKEN, Served

pytestmark = [pytest.mark.process, pytest.mark.slow]
QUESTION = "Where does the square go?"
TOKENS = 24


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def film_id(server: Served, video: Path) -> str:
    made = server.watch(video, name="the clip")
    assert made["status"] == "ready", made
    return str(made["id"])


@pytest.fixture(scope="module")
def expected(library: VideoModel, video: Path) -> str:
    """What the library answers."""
    return str(library.watch(video).ask(QUESTION, options=Generation(max_new_tokens=TOKENS)))


def data_url(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def message(*parts: dict[str, Any], question: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_the_openai_client_is_answered_as_the_library_answers(
    client: OpenAI, server: Served, video: Path, expected: str
) -> None:
    part = {"type": "video_url", "video_url": {"url": data_url(video)}}
    file = client.files.create(file=("../../a clip.mp4", video.read_bytes()), purpose="user_data")
    watched = server.metric("aurora_films_watched_total")
    forms = [part, {"type": "input_video", "input_video": {"data": base64.b64encode(video.read_bytes()).decode()}},
             {"type": "file", "file": {"file_id": file.id}}]
    for form in forms:
        made = client.chat.completions.create(model="aurora", messages=message(form), max_tokens=TOKENS)
        assert made.choices[0].message.content == expected
        assert made.usage is not None and 0 < made.usage.completion_tokens <= TOKENS
    # the same video is not watched again
    assert server.metric("aurora_films_watched_total") <= watched + 1
    stream = client.chat.completions.create(model="aurora", messages=message(part), max_completion_tokens=TOKENS,
                                            stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage == made.usage and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == made.choices[0].finish_reason


def test_the_responses_of_the_openai_client_are_the_same(client: OpenAI, video: Path, expected: str) -> None:
    given = [{"role": "user", "content": [{"type": "input_video", "video_url": data_url(video)},
                                          {"type": "input_text", "text": QUESTION}]}]
    made = client.responses.create(model="aurora", input=given, max_output_tokens=TOKENS)
    assert made.output_text == expected
    with client.responses.stream(model="aurora", input=given, max_output_tokens=TOKENS) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert [event.text for event in events if event.type == "response.output_text.done"] == [expected]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert client.responses.create(model="aurora", input="Hello?", instructions="Be kind.", max_output_tokens=3)


def test_a_list_of_images_is_a_film(client: OpenAI, library: VideoModel, video: Path) -> None:
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:3]
    parts = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "png")
        parts.append({"type": "image_url",
                      "image_url": {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}})
    made = client.chat.completions.create(model="aurora", messages=message(*parts), max_tokens=TOKENS)
    film = library.watch(frames)
    assert made.choices[0].message.content == film.ask(QUESTION, options=Generation(max_new_tokens=TOKENS))


def test_text_only_clients_ask_a_film_by_its_model(
    client: OpenAI, server: Served, film_id: str, expected: str, library: VideoModel, video: Path
) -> None:
    assert {"aurora", "film:the clip"} <= {model.id for model in client.models.list().data}
    assert client.models.retrieve("film:the clip").owned_by == "aurora"
    made = client.chat.completions.create(model="film:the clip", messages=message(), max_tokens=TOKENS)
    assert made.choices[0].message.content == expected
    langchain = pytest.importorskip("langchain_openai")
    with httpx.Client() as connections:
        chat = langchain.ChatOpenAI(model="film:the clip", base_url=f"{server.url}/v1", api_key=TOKEN,
                                    max_tokens=TOKENS, temperature=0, max_retries=0, http_client=connections)
        assert chat.invoke(QUESTION).content in (expected, expected.strip())
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == expected
    # a conversation
    said = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Two?"}]
    made = client.chat.completions.create(model="film:the clip", messages=said, max_tokens=TOKENS)
    film = library.watch(video)
    film.turns = (film.turn("One?")._replace(answer="Yes."),)
    assert made.choices[0].message.content == film.ask("Two?", options=Generation(max_new_tokens=TOKENS))


def test_curl_streams_an_answer(server: Served, film_id: str, expected: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl")
    body = {"model": "film:the clip", "messages": message(), "max_tokens": TOKENS, "stream": True}
    done = subprocess.run([curl, "-sN", f"{server.url}/v1/chat/completions", "-H", f"Authorization: Bearer {TOKEN}",
                           "-H", "Content-Type: application/json", "-d", json.dumps(body)], capture_output=True,
                          text=True, timeout=300, check=True)
    lines = [line.removeprefix("data: ") for line in done.stdout.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines) == expected


def test_a_film_is_asked_forked_exported_imported_and_deleted(
    server: Served, film_id: str, expected: str, library: VideoModel, tmp_path: Path
) -> None:
    client = server.client
    told = client.get(f"/v1/films/{film_id}").json()
    assert (told["status"], told["name"], told["progress"]) == ("ready", "the clip", 1.0)
    asked = server.ask(film_id, QUESTION, max_tokens=TOKENS)
    assert (asked["answer"], asked["frames"], asked["seconds"]) == (expected, told["frames"], told["seconds"])

    body = {"question": QUESTION, "max_tokens": TOKENS, "stream": True}
    lines = client.post(f"/v1/films/{film_id}/ask", json=body).text
    events = re.findall(r"event: (\w+)\ndata: (.*)\n", lines)
    assert "".join(json.loads(data)["text"] for kind, data in events if kind == "text") == expected
    assert events[-1][0] == "done"

    forked = client.post(f"/v1/films/{film_id}/fork", json={}).json()
    assert server.ask(forked["id"], QUESTION, max_tokens=TOKENS)["answer"] == expected
    remembered = server.ask(forked["id"], "One?", max_tokens=4, remember=True)["answer"]
    assert server.ask(film_id, QUESTION, max_tokens=TOKENS)["answer"] == expected  # what a fork is told, it alone knows

    state = client.get(f"/v1/films/{forked['id']}/state").content
    path = tmp_path / "film.aurora"
    path.write_bytes(state)
    film = library.open(path)
    assert [turn.answer for turn in film.turns] == [remembered]
    answer = film.ask(QUESTION, options=Generation(max_new_tokens=TOKENS))
    assert server.ask(forked["id"], QUESTION, max_tokens=TOKENS)["answer"] == answer

    imported = client.post("/v1/films/import", files={"file": ("../../x.aurora", state)}).json()
    assert imported["name"].startswith("x-") and imported["digest"] == forked["digest"]
    assert server.ask(imported["id"], QUESTION, max_tokens=TOKENS)["answer"] == answer
    assert client.get(f"/v1/films/{film_id}/thumbnails").json()["data"][0]["url"].startswith("data:image/jpeg")

    assert client.delete(f"/v1/films/{imported['id']}").json()["deleted"]
    assert client.get(f"/v1/films/{imported['id']}").status_code == 404
    damaged = client.post("/v1/films/import", files={"file": ("x", state[:-100])})
    assert damaged.status_code == 422 and str(server.store) not in damaged.text


def test_a_film_is_extended(server: Served, film_id: str, library: VideoModel, video: Path) -> None:
    forked = server.client.post(f"/v1/films/{film_id}/fork", json={"name": "longer"}).json()
    with video.open("rb") as file:
        made = server.client.post(f"/v1/films/{forked['id']}/extend", files={"file": file}, data={"fps": "4"})
    assert made.status_code == 202, made.text
    told = server.follow(forked["id"])
    film = library.watch(video)
    film.extend(video, fps=4.0)
    assert (told["status"], told["frames"]) == ("ready", film.frames)
    assert server.client.post("/v1/films", json={"live": True, "name": "longer"}).status_code == 409


def test_frames_are_sent_to_a_live_film(server: Served, library: VideoModel, video: Path) -> None:
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:3]
    made = server.client.post("/v1/films", json={"live": True}).json()
    for number, frame in enumerate(frames):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "png")
        told = server.client.post(f"/v1/films/{made['id']}/frame", params={"seconds": number},
                                  content=buffer.getvalue(), headers={"Content-Type": "image/png"}).json()
        assert (told["status"], told["frames"]) == ("live", number + 1)
    film = library.watch([(float(number), frame) for number, frame in enumerate(frames)])
    answer = film.ask(QUESTION, options=Generation(max_new_tokens=TOKENS))
    assert server.ask(made["id"], QUESTION, max_tokens=TOKENS)["answer"] == answer
    late = server.client.post(f"/v1/films/{made['id']}/frame", params={"seconds": 0.5}, content=buffer.getvalue())
    assert late.status_code == 409
    broken = server.client.post(f"/v1/films/{made['id']}/frame", content=b"no picture")
    assert broken.status_code == 422


def test_a_live_film_that_is_deleted_does_not_come_back(server: Served, library: VideoModel, video: Path) -> None:
    made = server.client.post("/v1/films", json={"live": True, "name": "gone"}).json()
    picture = library.watch(video, frames=1).thumbnails[0].jpeg
    server.client.post("/v1/films/gone/frame", content=picture).raise_for_status()
    assert server.client.delete(f"/v1/films/{made['id']}").status_code == 200
    for _ in range(10):
        time.sleep(0.1)
        assert server.client.get("/v1/films/gone").status_code == 404
        assert not (server.store / "gone.aurora").exists()


def test_a_name_is_not_the_id_of_another_film(server: Served, film_id: str, library: VideoModel, video: Path) -> None:
    refused = server.client.post("/v1/films", json={"live": True, "name": film_id})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "name")
    library.watch(video, frames=1).save(server.store / f"{film_id}.aurora")  # nor does a store's file take its place
    assert server.client.get(f"/v1/films/{film_id}").json()["name"] == "the clip"
    (server.store / f"{film_id}.aurora").unlink()


def test_a_film_whose_name_has_folders_is_reached_by_it(server: Served, video: Path) -> None:
    made = server.watch(video, name="trips/sea/day 1")
    for name in ("trips/sea/day 1", "trips%2Fsea%2Fday%201"):
        at = f"/v1/films/{name}"
        assert server.client.get(at).json()["id"] == made["id"]
        assert server.ask(name, QUESTION, max_tokens=2)["frames"] == made["frames"]
        for end in ("thumbnails", "state", "events", "patches"):
            assert server.client.get(f"{at}/{end}").status_code == 200, end
        assert server.client.post(f"{at}/fork", json={}).status_code == 201
    large = b"x" * (1 << 16)
    assert server.client.post("/v1/films/trips/sea/day 1/extend", files={"file": large}).status_code == 422
    assert server.client.get("/v1/films/", follow_redirects=True).json()["object"] == "list"
    assert server.client.delete("/v1/films/trips/sea/day 1").json()["id"] == made["id"]


def test_an_answer_about_a_moment_says_how_much_was_seen(server: Served, make_video: Any, library: VideoModel,
                                                         tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", 80)
    server.watch(video, name="kept", fps="4", checkpoint_seconds="3")
    film = library.watch(video, fps=4.0, checkpoint_seconds=3.0)
    film.media = tuple(medium._replace(path=None) for medium in film.media)  # as in the service, which keeps no video
    for at in (3.5, 1e6):
        expected, asked = film.ask(QUESTION, at=at), server.ask("kept", QUESTION, at=at, max_tokens=2)
        assert (asked["frames"], asked["seconds"]) == (expected.frames, expected.seconds)


def test_a_keep_ratio_that_cannot_be_reached_is_refused(server: Served, video: Path) -> None:
    with video.open("rb") as file:
        refused = server.client.post("/v1/films", files={"file": file}, data={"keep_ratio": "1e-300"})
    assert refused.status_code == 400 and "cannot merge" in refused.json()["error"]["message"]


def test_a_video_that_is_read_thinly_says_so(server: Served, make_video: Any, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", 80)
    assert server.watch(video, name="thin", fps="4", max_frames="5")["warnings"] == [
        "the video is longer than 5 frames at 4 a second: one was read every 2 s; a larger max_frames reads more"]
    assert server.watch(video, name="whole", fps="4", max_frames="500")["warnings"] == []


def test_a_film_that_was_made_up_is_not_imported(server: Served, library: VideoModel, video: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "film.aurora"
    library.watch(video, fps=3.0, checkpoint_seconds=1.0).save(path)
    saved = read_film(path)
    now, (medium,), (small, *_) = saved.now, saved.media, saved.thumbnails
    assert now.pending and now.memory.hidden is not None and saved.history
    (name, state), (shot, *rest) = next(iter(now.memory.state.items())), now.pending

    def seen(**changes: Any) -> dict[str, Any]:
        return {"now": replace(now, **changes)}

    def stated(tensor: torch.Tensor) -> Memory:
        return now.memory._replace(state={**now.memory.state, name: tensor})

    def shown(**changes: Any) -> dict[str, Any]:
        return seen(pending=(shot._replace(**changes), *rest))

    without = [{"facts": {key: value for key, value in saved.facts.items() if key != gone}}
               for gone in ("identity", "settings", "state_bytes")]
    for wrong in (
        *without, {"facts": {**saved.facts, "chosen": ["keep_ratio"],
                             "settings": {**saved.facts["settings"], "keep_ratio": "a"}}},
        {"media": (medium._replace(name=5),)}, {"media": (medium._replace(sampling={"fps": "x"}),)},
        {"turns": (Turn(5, "x"),)}, {"turns": (Turn("q", None), Turn("r", "s"))},
        seen(seconds=float("nan")), seen(seconds=float("inf")), seen(seconds="<script>"), seen(frames="x"),
        seen(frames=-5), seen(memory=stated(torch.full_like(state, torch.nan))), seen(memory=stated(state.double())),
        seen(memory=stated(state[..., :1])), seen(memory=now.memory._replace(hidden=torch.zeros(1, 3))),
        seen(memory=now.memory._replace(hidden=None)), shown(pixels=shot.pixels[:, :-1]), shown(keep=10**9),
        shown(pixels=shot.pixels.float()), shown(keep=0),
        {"history": (replace(saved.history[0], memory=stated(state[..., :1])),)},
        {"thumbnails": (small._replace(jpeg=b"no picture"),)}, {"thumbnails": (small._replace(seconds="<x>"),)},
    ):
        with monkeypatch.context() as forging:  # what Aurora itself does not write
            forging.setattr(json, "dumps", lambda facts, dumps=json.dumps, **how: dumps(
                facts, **{**how, "allow_nan": True}))
            write_film(saved._replace(**wrong), path)
        answer = server.client.post("/v1/films/import", files={"file": ("x", path.read_bytes())}, data={"name": "odd"})
        assert answer.status_code in (409, 422), (wrong, answer.text)
        assert server.client.get("/v1/films/odd").status_code == 404
    half = saved._replace(media=(medium._replace(name="\ud800.mp4"),), turns=(Turn("\ud800?", "x"),))
    write_film(half, path)  # as names of files may be
    answer = server.client.post("/v1/films/import", files={"file": ("x", path.read_bytes())}, data={"name": "half"})
    assert answer.status_code == 201 and answer.json()["media"] == ["?.mp4"]
    assert server.client.get("/v1/films").status_code == 200
    server.ask("half", QUESTION, max_tokens=2)


def test_files_are_kept_under_ids_of_the_server(client: OpenAI, server: Served) -> None:
    first = client.files.create(file=("../../etc/passwd", b"first"), purpose="user_data")
    second = client.files.create(file=("b", b"second"), purpose="vision")
    assert first.filename == "passwd"
    assert [file.id for file in client.files.list().data[:2]] == [second.id, first.id]
    assert client.files.content(first.id).read() == b"first"
    assert client.files.retrieve(second.id).bytes == 6
    assert client.files.delete(first.id).deleted
    for forged in (first.id, "file-..%2F..%2Flog", "..%2F..%2Flog", "file-0"):
        for path in (f"/v1/files/{forged}", f"/v1/files/{forged}/content", f"/v1/films/{forged}"):
            assert server.client.get(path).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
def test_nobody_is_served_without_the_token(server: Served, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/v1/films", "/metrics", "/docs"):
        answer = httpx.get(f"{server.url}{path}", headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_what_is_not_supported_is_refused_by_name(server: Served) -> None:
    def status(**fields: Any) -> tuple[int, str | None]:
        body = {"model": "aurora", "messages": message(), "max_tokens": 1, **fields}
        answer = server.client.post("/v1/chat/completions", json=body)
        return answer.status_code, answer.json().get("error", {}).get("param")

    assert status(user="me", metadata={"a": 1}, n=1, tools=[], logprobs=False, seed=-3) == (200, None)
    assert status(n=2) == (400, "n")
    assert status(tools=[{"type": "function"}]) == (400, "tools")
    assert status(min_p=0.1) == (400, "min_p")
    assert status(temperature=-1) == (400, "temperature")
    assert status(stop="") == (400, None)
    assert status(model="film:nothing")[0] == 404
    assert status(model="gpt")[0] == 404
    assert server.client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}
                              ).status_code == 400
    bodyless = server.client.post("/v1/chat/completions").json()["error"]["message"]
    assert bodyless == "the body: Field required"
    kept = server.client.post("/v1/files", files={"file": b"x"}, data={"expires_after[seconds]": "3600"})
    assert (kept.status_code, kept.json()["error"]["param"]) == (400, "expires_after[seconds]")
    assert server.client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert server.client.get("/v1/chat/completions").status_code == 405


def test_stop_strings_and_limits_end_an_answer(server: Served, film_id: str, expected: str) -> None:
    stop = expected[3:5]
    body = {"model": "film:the clip", "messages": message(), "max_tokens": TOKENS, "stop": [stop]}
    made = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (made["message"]["content"], made["finish_reason"]) == (expected.split(stop)[0], "stop")


@pytest.mark.parametrize("raw", [b"", b"no video", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 5000])
def test_what_is_no_video_is_said(server: Served, raw: bytes) -> None:
    data = f"data:video/mp4;base64,{base64.b64encode(raw).decode()}"
    body = {"model": "aurora", "messages": message({"type": "video_url", "video_url": {"url": data}})}
    answer = server.client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unreadable_media")
    assert str(server.store) not in answer.text


def test_a_broken_image_is_said_in_words(server: Served) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "png")
    data = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()[:1000]).decode()}"
    body = {"model": "aurora", "messages": message({"type": "image_url", "image_url": {"url": data}})}
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 422 and "('image'" not in answer.text, answer.text


def test_a_broken_video_fails_and_says_so(server: Served, video: Path, tmp_path: Path) -> None:
    raw = bytearray(video.read_bytes())
    raw[len(raw) // 3 : len(raw) // 2] = b"\xff" * (len(raw) // 2 - len(raw) // 3)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(raw[: len(raw) // 2]))
    told = server.watch(broken)
    assert told["status"] == "failed" and told["error"]
    asked = server.client.post(f"/v1/films/{told['id']}/ask", json={"question": "What?"})
    assert asked.status_code == 409
    assert server.client.delete(f"/v1/films/{told['id']}").status_code == 200


def test_what_is_too_large_is_refused(server: Served) -> None:
    large = b"x" * (3 << 19)
    assert server.client.post("/v1/files", files={"file": ("a", large)}, data={"purpose": "vision"}).status_code == 413
    assert server.client.post("/v1/films", files={"file": ("a", large)}).status_code == 413

    def endless() -> Any:  # without a length
        for _ in range(1000):
            yield b"x" * (1 << 16)

    sent = server.client.post("/v1/files", content=endless(),
                              headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert sent.status_code in (400, 413)


@pytest.mark.parametrize("content", [
    "[" * 200_000, '[{"type":"text","text":"a"},' * 40_000, f'"{"a b " * 100_000}"}}]}}'])
def test_what_would_keep_others_waiting_is_refused(server: Served, content: str) -> None:
    body = '{"model": "aurora", "messages": [{"role": "user", "content": ' + content
    answer = server.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_film_lasts_as_long_as_the_library_says(server: Served, film_id: str, library: VideoModel, video: Path
                                                  ) -> None:
    assert server.client.get(f"/v1/films/{film_id}").json()["seconds"] == library.watch(video).seconds
    rare = server.watch(video, name="rare", fps="0.3")
    assert rare["seconds"] == library.watch(video).seconds


def test_an_answer_ends_when_its_client_leaves(server: Served, film_id: str) -> None:
    body = {"model": "film:the clip", "messages": message(), "max_tokens": 600}
    for streamed in (True, False):
        try:
            with server.client.stream("POST", "/v1/chat/completions", json=body | {"stream": streamed}, timeout=0.5
                                      ) as answer:
                for _ in answer.iter_lines():
                    break
        except httpx.TimeoutException:
            pass
    deadline = time.monotonic() + 60
    while server.metric("aurora_answering") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("aurora_answering") == 0


def test_many_clients_get_the_answers_of_one_at_a_time(server: Served, film_id: str, library: VideoModel, video: Path
                                                      ) -> None:
    questions = [f"What is number {number}?" for number in range(12)]
    film, options = library.watch(video), Generation(max_new_tokens=TOKENS)
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(lambda question: server.ask(film_id, question, max_tokens=TOKENS)["answer"], questions))
    assert answers == [str(film.ask(question, options=options)) for question in questions]


def test_the_log_has_requests_but_no_text_of_them(server: Served, film_id: str) -> None:
    server.ask(film_id, "A secret question", max_tokens=2)
    server.client.get("/v1/models").raise_for_status()
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert {"event", "id", "method", "route", "status", "seconds"} <= lines[-1].keys()
    text = server.log.read_text()
    assert "secret" not in text and TOKEN not in text and QUESTION not in text
    assert server.metric("aurora_generated_tokens") > 0
    assert "aurora_first_token_seconds_bucket" in server.client.get("/metrics").text


def test_answers_drawn_with_a_seed_are_the_same_again(server: Served, film_id: str) -> None:
    answers = [server.ask(film_id, QUESTION, max_tokens=TOKENS, temperature=1.0, seed=seed)["answer"]
               for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
