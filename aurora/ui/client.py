"""What the page asks of a service, over HTTP."""

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from aurora.errors import AuroraError

_NAME = re.compile(r"[^\w .,()+@~#-]+")
PURPOSE = "aurora_ui"
"""What files are uploaded for by a page: it deletes no others."""
TIMEOUT = httpx.Timeout(30.0, read=300.0)


class ServiceError(AuroraError):
    """What the service answered when it refused, with its status, or that it cannot be reached."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Drawing(NamedTuple):
    """A frame after some blocks of the encoder."""

    png: bytes
    second: float
    depth: int
    depths: int
    tokens: int
    patches: int
    source: str


class Client:
    """A service as the page sees it. Every method raises ServiceError; leaving a stream early tells the service so."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url, self.token = url.rstrip("/"), token
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False)

    async def settings(self) -> dict[str, Any]:
        """How films are watched, what may be chosen, the limits, and what is in memory."""
        return await self._json("GET", "/v1/settings")

    async def films(self) -> list[dict[str, Any]]:
        """All films."""
        found: list[dict[str, Any]] = (await self._json("GET", "/v1/films"))["data"]
        return found

    async def film(self, film: str) -> dict[str, Any]:
        """What is known of a film."""
        return await self._json("GET", f"/v1/films/{film}")

    async def upload(self, path: Path, name: str) -> str:
        """The id of a file that the service keeps."""
        with path.open("rb") as file:
            kept = await self._json("POST", "/v1/files", files={"file": (name, file)}, data={"purpose": PURPOSE})
        return str(kept["id"])

    async def uploaded(self, **only: Any) -> list[dict[str, Any]]:
        """The files that the service keeps, the newest first; `only` those of a purpose."""
        kept: list[dict[str, Any]] = (await self._json("GET", "/v1/files", params=only))["data"]
        return kept

    async def watch(self, path: Path, **options: Any) -> dict[str, Any]:
        """Keeps a video and begins to watch it; one that cannot be watched is not kept."""
        file_id = await self.upload(path, path.name)
        try:
            return await self.watch_kept(file_id, path.stem, **options)
        except ServiceError:
            await self.forget(file_id)
            raise

    async def watch_kept(self, file_id: str, label: str, **options: Any) -> dict[str, Any]:
        """Begins to watch an uploaded file, under a name that is still free."""
        name = _free(_NAME.sub(" ", label).strip(" .") or "film", {told["name"] for told in await self.films()})
        given = {key: value for key, value in options.items() if value is not None}
        return await self._json("POST", "/v1/films", json={"file_id": file_id, "name": name, **given})

    async def video_of(self, told: Mapping[str, Any]) -> dict[str, Any] | None:
        """The file of a film's video, where the service keeps it."""
        return next((file for file in await self.uploaded() if file["sha256"] in told.get("sha256", [])), None)

    async def ask(self, film: str, question: str, **options: Any) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """The answer as events: `text` with a piece each, then `done` with what it took."""
        body = {"question": question, "stream": True, **options}
        async with aclosing(self._events("POST", f"/v1/films/{film}/ask", json=body)) as events:
            async for kind, told in events:
                if kind == "error":
                    raise ServiceError(told["error"]["message"])
                yield kind, told

    async def thumbnails(self, film: str) -> list[dict[str, Any]]:
        """Small pictures of a film, as data URLs with their seconds."""
        found: list[dict[str, Any]] = (await self._json("GET", f"/v1/films/{film}/thumbnails"))["data"]
        return found

    async def patches(self, film: str, **options: Any) -> Drawing:
        """The tokens of a frame, drawn."""
        given = {key: value for key, value in options.items() if value is not None}
        response = await self._response("GET", f"/v1/films/{film}/patches", params=given)
        told = {key.removeprefix("x-aurora-"): value for key, value in response.headers.items()}
        counts = {name: int(told[name]) for name in ("depth", "depths", "tokens", "patches")}
        return Drawing(response.content, float(told["second"]), source=told["source"], **counts)

    async def load(self, path: Path, name: str) -> dict[str, Any]:
        """Gives the service an exported film."""
        with path.open("rb") as file:
            return await self._json("POST", "/v1/films/import", files={"file": (name, file)})

    async def delete(self, film: str) -> None:
        """Deletes a film, or stops watching it; its video too, if a page uploaded it and no other film is of it."""
        shown = (await self.film(film)).get("sha256", [])
        await self._json("DELETE", f"/v1/films/{film}")
        still = {sha256 for other in await self.films() for sha256 in other.get("sha256", [])}
        for video in await self.uploaded(purpose=PURPOSE):
            if video["sha256"] in shown and video["sha256"] not in still:
                await self.forget(video["id"])

    async def forget(self, file_id: str) -> None:
        """Deletes an uploaded file."""
        await self._json("DELETE", f"/v1/files/{file_id}")

    async def state(self, film: str) -> httpx.Response:
        """The film as a file, to be read in pieces and closed."""
        response = await self._send(self._http.build_request("GET", f"/v1/films/{film}/state"))
        if response.is_error:
            await response.aread()
            await response.aclose()
            raise _refusal(response)
        return response

    async def close(self) -> None:
        """Ends its connections."""
        await self._http.aclose()

    async def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        told: dict[str, Any] = (await self._response(method, path, **request)).json()
        return told

    async def _response(self, method: str, path: str, **request: Any) -> httpx.Response:
        response = await self._send(self._http.build_request(method, path, **request))
        try:
            await response.aread()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()
        if response.is_error:
            raise _refusal(response)
        return response

    async def _events(self, method: str, path: str, **request: Any) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Server-sent events, each with its name."""
        response = await self._send(self._http.build_request(method, path, **request))
        try:
            if response.is_error:
                await response.aread()
                raise _refusal(response)
            rest = b""
            async for block in response.aiter_bytes():
                *events, rest = (rest + block).split(b"\n\n")
                for event in events:
                    yield _event(event)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServiceError:
        return ServiceError(f"The service at {self.url} does not answer ({type(error).__name__}). Is it running?")


def _event(raw: bytes) -> tuple[str, dict[str, Any]]:
    """One server-sent event; only its line ends are line ends, whatever else a text may hold."""
    fields = dict(line.split(": ", 1) for line in raw.decode().split("\n") if ": " in line)
    return fields.get("event", "message"), json.loads(fields["data"])


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"it answered with status {response.status_code}, as no service of Aurora does"
    if response.status_code == 401:
        message = "The service wants a token: start the page with --token or AURORA_TOKEN."
    return ServiceError(message, response.status_code)


async def settings_of(url: str, token: str | None) -> dict[str, Any]:
    """The settings of a service. ServiceError when it cannot be reached or refuses."""
    client = Client(url, token)
    try:
        return await client.settings()
    finally:
        await client.close()


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    name = name[:100]
    return next(free for number in range(1, len(taken) + 2)
                if (free := name if number == 1 else f"{name} {number}") not in taken)
