"""The server of the page: Gradio's app behind a gate, and the route that films are saved from."""

import base64
import hmac
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from aurora.ui.client import Client, ServiceError
from aurora.ui.page import Page

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost", "::1")


def create_app(client: Client, *, note: str = "", token: str | None = None, upload_bytes: int | None = None,
               local: bool = True) -> FastAPI:
    """The page's app. With a `token` a browser asks for it as a password; a `local` page is for this machine alone."""
    app = FastAPI(title="Aurora", docs_url=None, redoc_url=None, openapi_url=None)
    if token is not None:
        app.add_middleware(Password, password=token)
    if local:  # another site's name may not lead here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    @app.get("/films/{film}.aurora")
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

        kept = {key: value for key, value in state.headers.items() if key in ("content-length", "content-disposition")}
        return StreamingResponse(blocks(), media_type="application/octet-stream", headers=kept)

    page = Page(client, note)
    page.blocks.queue(default_concurrency_limit=32, api_open=False)
    script = f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>"
    mounted: FastAPI = gr.mount_gradio_app(
        app, page.blocks, path="/", footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
        mcp_server=False, ssr_mode=False, show_error=False, max_file_size=upload_bytes, theme=theme(),
        css_paths=HERE / "page.css", head=script)
    return mounted


def theme() -> gr.themes.Default:
    """Gradio's plain theme with the fonts of the system, so that nothing is fetched from elsewhere."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", radius_size="md",
                             font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


class Password:
    """Lets a request in that brings the password, whatever the user is called; a browser asks for it by itself."""

    def __init__(self, app: ASGIApp, password: str) -> None:
        self.app, self.password = app, password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._knows(dict(scope["headers"]).get(b"authorization", b"")):
            refused = Response("the password is the token that the page was started with", 401,
                               headers={"WWW-Authenticate": 'Basic realm="Aurora", charset="UTF-8"'})
            await refused(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _knows(self, given: bytes) -> bool:
        kind, _, encoded = given.partition(b" ")
        try:
            password = base64.b64decode(encoded.strip()).partition(b":")[2]
        except ValueError:
            return False
        return hmac.compare_digest(password, self.password) and kind.lower() == b"basic"


class Server(uvicorn.Server):
    """Says where the page is once it can be opened."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        for listening in self.servers:
            for socket in listening.sockets:
                host, port = socket.getsockname()[:2]
                sys.stderr.write(f"the page is at http://{f'[{host}]' if ':' in host else host}:{port}\n")
                sys.stderr.flush()


def serve(client: Client, *, host: str, port: int, token: str | None, note: str, upload_bytes: int | None) -> int:
    """Serves the page until SIGTERM or ^C; gives the exit status. What browsers upload lies in a folder that goes with
    it."""
    with tempfile.TemporaryDirectory(prefix="aurora-ui-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        local = host in LOCAL
        app = create_app(client, note=note, token=None if local else token, upload_bytes=upload_bytes, local=local)
        server = Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False,
                                       timeout_graceful_shutdown=3))
        try:
            server.run()
        except KeyboardInterrupt:
            return 130
    return 0 if server.started else 1
