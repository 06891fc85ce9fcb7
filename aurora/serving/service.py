"""What every form of request comes down to: a film, a conversation about it, and an answer from the engine."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from starlette.types import Receive

from aurora.files import remove
from aurora.inference.film import Film
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling, Turn
from aurora.serving.answer import Answer
from aurora.serving.engine import Engine
from aurora.serving.errors import ApiError
from aurora.serving.files import UploadedFiles
from aurora.serving.films import SERVICE, Films, thinned
from aurora.serving.messages import Medium
from aurora.serving.metrics import Metrics
from aurora.serving.patches import Figures
from aurora.serving.request_films import RequestFilms
from aurora.serving.settings import Settings

T = TypeVar("T")
FILM = "film:"
"""What the model id of a saved film begins with."""


class ClientLeft(Exception):
    """Nobody waits for the response."""


class Service:
    """One model with its engine, films and files."""

    def __init__(self, model: VideoModel, settings: Settings) -> None:
        model = copy(model)  # the caller's own keeps reading without the engine
        self.settings, self.model, self.metrics = settings, model, Metrics()
        self.started = int(time.time())
        self.engine = Engine(model.model, model.runner, max_sequences=settings.answering,
                             max_waiting=settings.max_waiting)
        model.prefill = self.engine.prefill
        self.films = Films(model, settings, self.metrics)
        self.request_films = RequestFilms(settings.folder / SERVICE / "cache", settings.cache_bytes, model,
                                          self.films.watcher, self.films.memory, self.metrics)
        self.files = UploadedFiles(settings.folder / SERVICE / "files", settings.files_bytes)
        self.figures = Figures(self.files, settings)
        self.scratch = settings.folder / SERVICE / "scratch"
        remove(self.scratch)  # of requests that a kill ended
        self.scratch.mkdir()
        self.ready = False
        self.closing = asyncio.Event()
        engine, films = self.engine, self.films
        self.metrics.watch({
            "answering": ("Answers being made.", lambda: engine.answering),
            "waiting": ("Questions that wait for their first pass.", lambda: engine.waiting),
            "watching": ("Films being watched or waiting for it.", lambda: len(films.watches)),
            "films_in_memory": ("Films whose state is in memory.", lambda: len(films.memory)),
            "films_in_memory_bytes": ("Bytes of these states.", lambda: films.memory.bytes),
            **{name: (f"Of the engine: {name.replace('_', ' ')}.", partial(engine.counts.__getitem__, name))
               for name in engine.counts},
        })

    def folder(self) -> Path:
        """A new folder for the files of one request."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def models(self) -> list[dict[str, object]]:
        """The model, and every film as a model of its own, which knows the film."""
        names = [self.settings.model_name]
        names += [f"{FILM}{film['name']}" for film in map(self.films.shown, self.films.names())
                  if film["status"] in ("ready", "watching", "live")]
        return [{"id": name, "object": "model", "created": self.started, "owned_by": "aurora"} for name in names]

    async def film_of(self, model: str, media: Sequence[Medium], sampling: Sampling) -> Film:
        """What a request is about: the film that its model names, or that of its media. ApiError 404 for a model that
        does not exist."""
        if model.startswith(FILM):
            if media:
                raise ApiError(400, f"the model {model[:100]!r} is a film already; ask {self.settings.model_name!r} "
                                    "about other videos", param="model")
            return await self.films.open(self.films.find(model.removeprefix(FILM)))
        if model != self.settings.model_name:
            raise ApiError(404, f"there is no model {model[:100]!r}; GET /v1/models lists them", param="model",
                           code="model_not_found")
        if not media:
            return self.model.blank()
        folder = self.folder()
        try:
            files = [await self._file(medium, folder, number) for number, medium in enumerate(media)]
            watching = self.request_films.of_files(files, sampling, folder)
        except BaseException:
            remove(folder)
            raise
        try:
            return await asyncio.wait_for(watching, self.settings.watch_seconds)
        except asyncio.TimeoutError:
            raise ApiError(504, f"watching took more than {self.settings.watch_seconds:g} s; upload the video to "
                                "/v1/films and ask it when it is ready") from None

    async def _file(self, medium: Medium, folder: Path, number: int) -> Path:
        path = folder / str(number)
        if medium.file_id is not None:
            await asyncio.to_thread(self.files.link, medium.file_id, path)
        elif medium.url is not None:
            return await self.fetch(medium.url, folder)
        else:
            await asyncio.to_thread(path.write_bytes, medium.data or b"")
        return path

    async def fetch(self, url: str, folder: Path) -> Path:
        """The file of a url, where the server fetches any. ApiError with the status of what went wrong."""
        if not self.settings.video_urls:
            raise ApiError(400, "this server fetches no urls; send the video as data:…;base64,… or upload it to "
                                "/v1/files", code="url_not_allowed")
        from aurora.serving.fetch import FetchError, FetchLimits, fetch_video_async

        limits = FetchLimits(hosts=self.settings.video_urls, max_bytes=self.settings.upload_bytes,
                             max_seconds=self.settings.fetch_seconds)
        try:
            return await fetch_video_async(url, limits, folder)
        except FetchError as error:
            raise ApiError(error.status, str(error)) from error

    async def ask(self, film: Film, turns: Sequence[Turn], options: Generation, *, at: float | None = None) -> Answer:
        """An answer that is being made. ApiError or QueueFull where there is none."""
        characters = sum(len(turn.question) + len(turn.answer or "") for turn in turns)
        if characters > self.settings.text_characters:
            raise ApiError(413, f"the question and the conversation before it have {characters} characters; at most "
                                f"{self.settings.text_characters} are taken")
        memory = await asyncio.to_thread(film.memory, at)
        ids = await asyncio.to_thread(film.question_ids, turns)
        answer = self.engine.ask(memory, ids, options, seconds=self.settings.deadline_seconds)
        answer.warnings = thinned(film.frames, film.seconds, [medium.sampling for medium in film.media])
        return answer

    async def pieces(self, answer: Answer) -> AsyncIterator[str]:
        """The text of an answer as it is made; its first piece is timed."""
        began, first = time.monotonic(), True
        async for piece in answer.pieces():
            if first:
                self.metrics.first_token.observe(time.monotonic() - began)
                first = False
            yield piece

    def generation(self, *, max_tokens: int | None, temperature: float | None, top_p: float | None,
                   top_k: int | None = None, seed: int | None, stop: Sequence[str] | None) -> Generation:
        """How an answer is drawn: greedily unless a temperature is given, and never longer than the server allows."""
        stops = tuple(stop or ())
        if len(stops) > 16 or sum(map(len, stops)) > 4096:
            raise ApiError(400, "at most 16 stop strings are taken, of 4096 characters together", param="stop")
        default = Generation()
        wanted = default.max_new_tokens if max_tokens is None else max_tokens
        return Generation(
            max_new_tokens=min(wanted, self.settings.max_new_tokens), top_k=top_k, stop=stops,
            temperature=float(temperature or 0.0), top_p=1.0 if top_p is None else float(top_p),
            seed=secrets.randbits(62) if seed is None else seed % (1 << 63))

    def close(self) -> None:
        """Ends what is watched, then the engine."""
        self.films.close()
        self.engine.close()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """What the work gives; ClientLeft, and the work is cancelled, when the client leaves before."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
