"""What happens to every request, as pure ASGI, so that a client that leaves is noticed: who may ask, how much it may
send, what is logged and counted."""

import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import structlog
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from aurora.serving.errors import ApiError, api_error, error_body
from aurora.serving.metrics import Metrics
from aurora.serving.settings import LOCAL, Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/ready")
"""Paths that need no token: whoever restarts the server has none."""
UPLOADS = re.compile(r"/v1/(files|films(/import|/.+/extend)?)")
"""Paths whose forms may be as large as an upload: they go to the disk as they come."""

log = structlog.get_logger("aurora.serving")


class Gate:
    """Lets a request in when its token is right and its body is not too large; logs and counts it without its text.

    Without a token this machine is served, and not what pages of other sites make a browser on it send.
    """

    def __init__(self, app: Asgi, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, request_id, status = time.monotonic(), f"req_{uuid.uuid4().hex}", 499
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check_token(scope["path"], headers)
            json_values = self.settings.json_values if _is_json(scope["path"], headers) else None
            limited = _Limited(receive, self._limit(scope, headers), json_values)
            limited.check(headers.get(b"content-length", b"0"))
            await self.app(scope, limited, sending)
        except ClientDisconnect:
            pass
        except Exception as error:
            told = api_error(error)
            if told.status_code >= 500:
                logging.getLogger(__name__).exception("request %s failed", request_id)
            if status != 499:  # the answer has begun; all that is left is to end the connection
                raise
            await JSONResponse(error_body(told), told.status_code, headers=told.headers)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = time.monotonic() - began
            self.metrics.request(scope["method"], route, status, seconds)
            log.info("request", id=request_id, method=scope["method"], route=route, status=status,
                     seconds=round(seconds, 4), client=(scope.get("client") or ("",))[0])

    def _check_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        if path in OPEN:
            return
        if self.settings.token is None:
            self._check_site(headers)
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self.settings.token.encode())
        if kind.lower() != b"bearer" or not right:
            raise ApiError(401, "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`")

    def _check_site(self, headers: dict[bytes, bytes]) -> None:
        host = _hostname(b"//" + headers.get(b"host", b""))
        if host not in LOCAL:  # a name of another site may lead here
            raise ApiError(403, f"a server without a token is not reached as {host[:100]!r}; set one with --token or "
                                "AURORA_TOKEN")
        origin = headers.get(b"origin")  # of browsers alone
        foreign = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        if foreign or (origin is not None and _hostname(origin) not in LOCAL):
            raise ApiError(403, "this was sent by a page of another site, which a server without a token refuses; set "
                                "one with --token or AURORA_TOKEN")

    def _limit(self, scope: Scope, headers: dict[bytes, bytes]) -> int:
        is_form = headers.get(b"content-type", b"").startswith(b"multipart/form-data")
        if is_form and UPLOADS.fullmatch(scope["path"]):
            return self.settings.upload_bytes + (1 << 16)  # what multipart writes around it
        return self.settings.body_bytes


def _hostname(address: bytes) -> str:
    """The host of an address; empty where it has none."""
    try:
        return urlsplit(address.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _is_json(path: str, headers: dict[bytes, bytes]) -> bool:
    """Whether the body may be parsed as JSON; frames of a live film are images, whatever their type says."""
    return b"json" in headers.get(b"content-type", b"json").lower() and not path.endswith("/frame")


class _Limited:
    """A request body that raises a 413 where it becomes too long, whatever its header says, or, as JSON, holds too many
    values to be parsed while others wait."""

    def __init__(self, receive: Receive, limit: int, json_values: int | None) -> None:
        self.receive, self.limit, self.json_values = receive, limit, json_values
        self.read = self.values = 0

    def check(self, length: bytes) -> None:
        if not length.isdigit():
            raise ApiError(400, "the Content-Length is not a number")
        if int(length) > self.limit:
            raise ApiError(413, f"the body has {int(length)} bytes; at most {self.limit} are taken")

    async def __call__(self) -> Message:
        message = await self.receive()
        self.read += len(message.get("body", b""))
        if self.read > self.limit:
            raise ApiError(413, f"the body has more than {self.limit} bytes")
        if self.json_values is not None:
            # none of these is in base64, so a video inside of the body counts as one
            self.values += sum(map(message.get("body", b"").count, (b",", b"[", b"{")))
            if self.values > self.json_values:
                raise ApiError(413, f"the body has more than {self.json_values} commas and brackets")
        return message
