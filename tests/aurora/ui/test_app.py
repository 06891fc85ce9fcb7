from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from aurora.cli import main
from aurora.ui.client import Client, ServiceError, settings_of

from .conftest import ROOT, TOKEN, Service

pytest.importorskip("gradio")


class Refuses(BaseHTTPRequestHandler):
    """A service that refuses, or speaks of something else."""

    def do_GET(self) -> None:
        status, body = {"/v1/settings": (401, b"{}"), "/v1/films": (418, b"teapot")}.get(self.path, (
            409, json.dumps({"error": {"message": "nothing was seen"}}).encode()))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = ('event: text\ndata: {"text": "a\u2028b"}\n\n'
                'event: error\ndata: {"error": {"message": "too late"}}\n\n').encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refusal_says_what_the_service_said(url: str) -> None:
    async def tried() -> None:
        client = Client(url, None)
        with pytest.raises(ServiceError, match="wants a token"):
            await client.settings()
        with pytest.raises(ServiceError, match="status 418"):
            await client.films()
        with pytest.raises(ServiceError, match="nothing was seen"):
            await client.film("x")
        await client.close()

    asyncio.run(tried())


@pytest.mark.process
@pytest.mark.slow
def test_a_deleted_film_takes_no_file_of_other_clients_along(service: Service, no_films: None, clip: Path) -> None:
    def files() -> list[str]:
        return [file["id"] for file in service.client.get("/v1/files").json()["data"]]

    async def tried() -> None:
        client = Client(service.url, TOKEN)
        with clip.open("rb") as file:
            others = service.client.post("/v1/files", files={"file": file}).json()["id"]
        first, second = await client.watch(clip), await client.watch(clip)
        for film in (first, second):
            service.client.get(f"/v1/films/{film['id']}/events")  # ends when it is ready
        await client.delete(first["id"])
        assert len(files()) == 3, "the other film is of it"
        await client.delete(second["id"])
        assert files() == [others]
        await client.close()

    asyncio.run(tried())


@pytest.mark.process
@pytest.mark.slow
def test_a_film_whose_name_has_folders_is_saved_by_its_name(service: Service, served: str, no_films: None) -> None:
    service.client.post("/v1/films", json={"live": True, "name": "trips/sea"}).raise_for_status()
    state = service.client.get("/v1/films/trips/sea/state").content
    assert httpx.get(f"{served}/films/trips/sea.aurora").content == state


def test_an_error_in_a_stream_ends_it_and_odd_line_ends_are_text(url: str) -> None:
    async def asked() -> list[str]:
        client, said = Client(url, None), []
        with pytest.raises(ServiceError, match="too late"):
            async for _, told in client.ask("film", "What?"):
                said.append(told["text"])
        await client.close()
        return said

    assert asyncio.run(asked()) == ["a\u2028b"]


def test_a_service_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9 does not answer"):
        asyncio.run(settings_of("http://127.0.0.1:9", None))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "said"), [
    (("--service", "{url}", "--token", "another token entirely"), "wants a token"),
    (("--service", "http://127.0.0.1:9"), "does not answer"),
    (("--service", "127.0.0.1:8000"), "is not an address"),
    (("--service", "{url}", "--store", "films"), "has its own"),
    (("--host", "127.0.0.2", "--token", "short"), "16 or more characters"),
    (("--model", "/nowhere/model"), "/nowhere/model"),
])
def test_what_cannot_be_opened_is_one_line_that_says_why(
    service: Any, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    assert main(["ui", "--port", "0", *(word.format(url=service.url) for word in arguments)]) == 2
    text = capsys.readouterr().err
    assert said in text and text.count("error:") == 1 and text.count("\n") == 1
