"""The server of the page: Gradio's app behind a gate, and the route that films are saved from."""

import asyncio
import base64
import hmac
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from aurora.serving.listening import address
from aurora.ui.client import Client, ServiceError, settings_of
from aurora.ui.page import Page

HERE = Path(__file__).parent


def create_app(client: Client, settings: Mapping[str, Any], *, token: str | None = None, local: bool = True
               ) -> FastAPI:
    """The page of a service with these settings. With a `token` a browser asks for it as a password; a `local` page is
    for this machine alone."""
    app = FastAPI(title="Aurora", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, password=token)
    if local:  # another site's name may not lead here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    @app.get("/films/{film:path}.aurora")
    async def save(film: str) -> Response:
        """A film as a file."""
        try:
            state = await client.state(film)
        except ServiceError as error:
            raise HTTPException(404, str(error)) from error

        async def blocks() -> AsyncIterator[bytes]:
            try:
                async for block in state.aiter_raw():
                    yield block
            finally:
                await state.aclose()

        kept = {key: value for key, value in state.headers.items() if key == "content-length"}
        return StreamingResponse(blocks(), media_type="application/octet-stream", headers=kept)

    page = Page(client, settings)
    page.blocks.queue(default_concurrency_limit=32, api_open=False)
    script = f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>"
    mounted: FastAPI = gr.mount_gradio_app(
        app, page.blocks, path="/", footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
        mcp_server=False, ssr_mode=False, show_error=True, max_file_size=settings["limits"]["upload_bytes"],
        theme=theme(), css_paths=HERE / "page.css", head=script)
    return mounted


def theme() -> gr.themes.Default:
    """Gradio's plain theme with the fonts of the system, so that nothing is fetched from elsewhere."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", radius_size="md",
                             font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")


class Gate:
    """Lets a request in that brings the password, where there is one, whatever the user is called; a browser asks for
    it by itself. What a page of another site makes the browser send is refused."""

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        self.app, self.password = app, None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "lifespan":
            refused = None
        elif self.password is not None and not self._knows(headers.get(b"authorization", b"")):
            refused = Response("the password is the token that the page was started with", 401,
                               headers={"WWW-Authenticate": 'Basic realm="Aurora", charset="UTF-8"'})
        elif headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate":
            refused = Response("this was sent by a page of another site", 403)
        else:
            refused = None
        await (self.app if refused is None else refused)(scope, receive, send)

    def _knows(self, given: bytes) -> bool:
        kind, _, encoded = given.partition(b" ")
        try:
            password = base64.b64decode(encoded.strip()).partition(b":")[2]
        except ValueError:
            return False
        return hmac.compare_digest(password, self.password or b"") and kind.lower() == b"basic"


class Server(uvicorn.Server):
    """Says where the page is once it can be opened."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        for one in sockets or ():
            sys.stderr.write(f"the page is at {address(one)}\n")
            sys.stderr.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn does, but `run` returns instead of raising the signal again: a service may have to be ended."""
        self.force_exit = self.should_exit
        self.should_exit = True
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages that listen are cut off


def serve(client: Client, listening: socket.socket, *, token: str | None, local: bool) -> int:
    """Serves the page until SIGTERM or ^C; gives the exit status. What browsers upload lies in a folder that goes with
    it. ServiceError when the service cannot be reached."""
    settings = asyncio.run(settings_of(client.url, client.token))
    with tempfile.TemporaryDirectory(prefix="aurora-ui-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        app = create_app(client, settings, token=None if local else token, local=local)
        server = Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
        server.run(sockets=[listening])
    return 0 if server.started else 1
