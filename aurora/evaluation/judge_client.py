"""A language model behind an OpenAI-compatible endpoint, asked with retries, and a cache of what it said."""

import asyncio
import contextlib
import hashlib
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx

from aurora.errors import AuroraError
from aurora.evaluation.verdicts import Messages

T = TypeVar("T")
PASSING = (408, 409, 425, 429)  # statuses that may pass, as those from 500 on
MOST_WAIT = 600.0  # seconds that a Retry-After may ask for
UNREADABLE = 3  # times that a request is sent whose answer makes no sense
IN_A_ROW = 5  # requests that fail for good one after the other until it is not the items' fault
_SHOWN = 300  # characters of a server's message


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is, and how it is asked."""

    base_url: str
    model: str
    parameters: Mapping[str, Any]  # of the request, besides model and messages
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    timeout: float = 60.0  # seconds for one answer
    retries: int = 5  # of a request that failed

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.base_url.strip().rstrip("/").removesuffix("/chat/completions"))
        except httpx.InvalidURL as error:
            raise AuroraError(f"the judge's URL makes no sense: {error}") from error
        whole = url.scheme in ("http", "https") and url.host and (url.port or 0) < 1 << 16
        if not whole or url.userinfo or url.query:
            raise AuroraError(f"the judge's URL {url.copy_with(userinfo=b'', query=None)} must be http(s)://HOST/PATH, "
                              "such as http://127.0.0.1:8000/v1; a key comes from an environment variable")
        object.__setattr__(self, "base_url", str(url))


class Unanswered(Exception):
    """One request that was not answered, and why; others may be."""


class Completion(NamedTuple):
    """What a judge said, and what it calls itself."""

    text: str
    model: str


class VerdictCache:
    """What was said, in an SQLite file, by all that an answer depends on: the URL and name of the judge (the same name
    elsewhere may be other weights), the messages, and the parameters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._named():
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, text TEXT NOT NULL, "
                                   "model TEXT NOT NULL) WITHOUT ROWID")

    def get(self, key: str) -> Completion | None:
        """What was said before."""
        with self._named():
            row = self._database.execute("SELECT text, model FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else Completion(*row)

    def put(self, key: str, made: Completion) -> None:
        """Keeps an answer; it is on the disk when this returns."""
        with self._named():
            self._database.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", (key, *made))

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise AuroraError(f"{self.path} cannot be used as the cache of verdicts ({error}); give another --cache"
                              ) from error


class JudgeClient:
    """Asks a judge. AuroraError for what no request would survive, such as a wrong key or a server that is away."""

    def __init__(self, endpoint: Endpoint, cache: VerdictCache) -> None:
        self.endpoint, self.cache = endpoint, cache
        headers = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
        limits = httpx.Limits(max_connections=endpoint.concurrency)
        self._http = httpx.AsyncClient(headers=headers, limits=limits, timeout=endpoint.timeout)
        self._failed = 0  # requests in a row

    async def ask(self, messages: Messages, read: Callable[[str], T | None]) -> tuple[T, str]:
        """What `read` makes of the answer, and the name of the model that gave it. Unanswered when it gives none."""
        body = {"model": self.endpoint.model, "messages": list(messages), **self.endpoint.parameters}
        key = hashlib.sha256(json.dumps([self.endpoint.base_url, body], sort_keys=True).encode()).hexdigest()
        made = self.cache.get(key)
        if made is not None and (found := read(made.text)) is not None:
            return found, made.model
        reason = ""
        for _ in range(UNREADABLE):
            made, why = await self._complete(body)
            if (found := read(made.text)) is not None:
                self.cache.put(key, made)
                return found, made.model
            reason = why or (f"it said {made.text[:_SHOWN]!r}" if made.text.strip() else "it said nothing")
        raise Unanswered(reason)

    async def close(self) -> None:
        await self._http.aclose()

    async def _complete(self, body: Mapping[str, Any]) -> tuple[Completion, str]:
        """What was said, and what is wrong with it."""
        try:
            made = _completion(await self._answered(body))
        except Unanswered as error:
            self._failed += 1
            if self._failed >= IN_A_ROW:
                raise self._stop(f"failed {self._failed} times in a row, the last time because {error}") from error
            raise
        self._failed = 0
        return made

    async def _answered(self, body: Mapping[str, Any]) -> httpx.Response:
        """The response, when need be after retries."""
        for attempt in range(self.endpoint.retries + 1):
            wait = random.uniform(0.5, 1) * min(60.0, 2.0**attempt)
            try:
                # httpx's own limit is between two bytes
                response = await asyncio.wait_for(self._http.post(f"{self.endpoint.base_url}/chat/completions",
                                                                  json=dict(body)), self.endpoint.timeout)
            except (asyncio.TimeoutError, httpx.TimeoutException):
                reason, away = f"it did not answer within {self.endpoint.timeout:g} seconds", False
            except httpx.RequestError as error:
                away = isinstance(error, httpx.ConnectError)
                reason = str(error) if away else f"the connection broke off ({type(error).__name__})"
            else:
                reason, away = self._reason(response), False
                if not reason:
                    return response
                wait = _retry_after(response, wait)
                if response.status_code not in (200, *PASSING) and response.status_code < 500:
                    break
                if wait > MOST_WAIT:
                    raise self._stop(f"asks to be left alone for {wait:.0f} seconds: {reason}")
            if attempt < self.endpoint.retries:
                await asyncio.sleep(wait)
        if away:
            raise self._stop(f"cannot be reached ({reason}), after {self.endpoint.retries + 1} attempts")
        raise Unanswered(reason)

    def _reason(self, response: httpx.Response) -> str:
        """Why a response is none; empty where it is one."""
        status, message = response.status_code, self._message(response)
        if status == 200:
            return _problem(response)
        if status in (401, 403):
            given = "refuses the key" if self.endpoint.key else "wants a key, and none was given; --key-env names one"
            raise self._stop(f"{given} (status {status})")
        if status == 404:
            raise self._stop(f"has no model {self.endpoint.model!r} there, or nothing at this URL, which often ends in "
                             f"/v1 (status 404: {message})")
        return f"it answered with status {status}: {message}"

    def _message(self, response: httpx.Response) -> str:
        """The server's own words, without the key that some repeat."""
        held = _json(response)
        error = held.get("error") if isinstance(held, dict) else None
        given = error.get("message") if isinstance(error, dict) else error
        text = " ".join(_encodable(given or response.text).split())[:_SHOWN] or "no message"
        return text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text

    def _stop(self, problem: str) -> AuroraError:
        return AuroraError(f"the judge {self.endpoint.model!r} at {self.endpoint.base_url} {problem}. Verdicts that "
                           f"were given are kept in {self.cache.path}; the same command goes on from there")


def _problem(response: httpx.Response) -> str:
    """What is wrong with the shape of a response; empty where nothing is."""
    held = _json(response)
    if not isinstance(held, dict):
        return "its response is not JSON"
    try:
        assert isinstance(held["choices"][0]["message"], dict)
    except (AssertionError, KeyError, IndexError, TypeError):
        return f"its response holds no message: {response.text[:_SHOWN]}"
    return ""


def _completion(response: httpx.Response) -> tuple[Completion, str]:
    """What the first choice of a response says, and what is wrong with it."""
    held = response.json()
    choice = held["choices"][0]
    content, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    reason = f"it refused: {_encodable(refusal)[:_SHOWN]}" if refusal else ""
    if choice.get("finish_reason") == "length":
        reason = "its answer was cut off at the most tokens; max_tokens=N allows more"
    elif choice.get("finish_reason") == "content_filter":
        reason = "a content filter held its answer back"
    parts = content if isinstance(content, list) else [{"text": content}]
    text = "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
    return Completion(_encodable(text), _encodable(held.get("model") or "")), reason


def _encodable(value: object) -> str:
    """As text that can be stored: JSON may hold half a surrogate pair."""
    return str(value).encode(errors="replace").decode()


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait: a number, or a date."""
    given = response.headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(given))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    return otherwise
