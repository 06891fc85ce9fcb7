from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aurora.ui.client import Client, ServiceError, settings_of

pytest.importorskip("gradio")


SETTINGS = {
    "shipped": False, "depth": 5, "choices": {"merge": ["tome"], "sort": ["size"]},
    "limits": {"upload_bytes": 1 << 20, "max_fps": 30},
    "watched_with": {"keep_ratio": 0.2, "merge": {"name": "tome"}, "sort": {"name": "size"}},
}


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


@pytest.mark.slow
def test_the_page_asks_for_its_password_and_takes_no_other_host() -> None:
    from starlette.testclient import TestClient

    from aurora.ui.app import create_app

    app = create_app(Client("http://127.0.0.1:9", None), SETTINGS, token="a token that nobody guesses", local=False)
    with TestClient(app, base_url="http://page") as page:
        assert page.get("/").status_code == 401
        assert page.get("/config", auth=("me", "wrong")).status_code == 401
        shown = page.get("/", auth=("me", "a token that nobody guesses"))
        assert shown.status_code == 200 and "gradio" in shown.text
        assert page.get("/films/film_0.aurora").status_code == 401
    local = create_app(Client("http://127.0.0.1:9", None), SETTINGS)
    with TestClient(local, base_url="http://evil.example") as page:
        assert page.get("/").status_code == 400
