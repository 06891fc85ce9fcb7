"""`/v1/films`: a video is watched once, and its film asked, forked, extended, exported and imported. Every route takes
the film's id or its name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from starlette.convertors import PathConvertor, register_url_convertor

from aurora.errors import AuroraError, BadSample
from aurora.files import remove
from aurora.images import READABLE, decode_image
from aurora.inference.film import Film
from aurora.inference.film_file import SUFFIX, FilmMismatch
from aurora.inference.snapshot import Medium, Snapshot
from aurora.interfaces import Turn
from aurora.serving.answer import Answer
from aurora.serving.errors import ApiError, api_error, error_body
from aurora.serving.files import blocks
from aurora.serving.film_uploads import (
    NewFilm,
    WatchOptions,
    copy_upload,
    read_body,
    require_single,
    require_sound,
    require_still,
    start_watching,
)
from aurora.serving.films import ROUTES, id_of
from aurora.serving.openai import Served, Stop, event, usage
from aurora.serving.service import Service, while_connected
from aurora.serving.watching import Live


class _FilmName(PathConvertor):
    regex = ".+"  # a name may have folders in it


class _WholeName(PathConvertor):
    regex = rf"(?!.+/(?:{'|'.join(ROUTES)})$).+"  # else another method of a route would be a film that does not exist


register_url_convertor("film", _FilmName())
register_url_convertor("whole_film", _WholeName())
router = APIRouter(prefix="/v1/films")
FRAME_BYTES = 32 << 20
USING = ("keep_ratio", "merge", "sort", "skip", "prompt")


class Question(BaseModel):
    """The body of `ask`."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, Field(min_length=1)]
    at: Annotated[float, Field(ge=0)] | None = None
    stream: StrictBool = False
    remember: StrictBool = False
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    stop: Stop | None = None


class Name(BaseModel):
    """The body of `fork`."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=120)] | None = None


@router.get("")
async def list_films(service: Served) -> dict[str, Any]:
    """All films: those of the store, and those that are being watched."""
    return {"object": "list", "data": [service.films.shown(name) for name in service.films.names()]}


@router.post("", status_code=202)
async def create(request: Request, service: Served) -> dict[str, Any]:
    """Begins to watch a video, uploaded as `file` of a form or named by a file id or url; with `live` an empty film."""
    given, upload = await read_body(request, NewFilm)
    for field in ("fps", "frames", "max_frames"):
        if given.live and getattr(given, field) is not None:
            raise ApiError(400, f"{field} chooses frames of a video; of a live film all that are sent are read",
                           param=field)
    using = {key: value for key in USING if (value := getattr(given, key)) is not None}
    if not service.model.using(**using).reusable and "prompt" in using:
        raise ApiError(400, f"the prompt {given.prompt!r} begins with the question; a film is watched before it is "
                            "asked", param="prompt")
    every = given.checkpoint_seconds
    with service.films.naming(given.name, None if upload is None else upload.filename) as name:
        if not given.live:
            return await start_watching(service, name, given, upload, using=using, checkpoint_seconds=every,
                                        extends=None)
        film = await asyncio.to_thread(service.model.watch, checkpoint_seconds=every, **using)
        return await _keep(service, film, name)


@router.post("/import", status_code=201)
async def import_film(request: Request, service: Served, file: Annotated[UploadFile, File()],
                      name: Annotated[str | None, Form()] = None) -> dict[str, Any]:
    """Keeps an exported film under a name that is free. 409 when it is another model's, 422 when it is damaged."""
    require_single(await request.form())
    folder = service.folder()
    path = folder / f"film{SUFFIX}"
    try:
        await asyncio.to_thread(copy_upload, file, path, service.settings.memory_bytes)
        film = await asyncio.to_thread(service.model.open, path)
        await asyncio.to_thread(require_sound, film)
    except FilmMismatch as error:
        raise ApiError(409, str(error).replace(str(path), "the file")) from error
    except ApiError:
        raise
    except AuroraError as error:
        raise ApiError(422, str(error).replace(str(path), "the file")) from error
    finally:
        remove(folder)
    with service.films.naming(name, file.filename) as free:
        return await _keep(service, film, free)


@router.get("/{film:film}/events")
async def follow(film: str, service: Served) -> StreamingResponse:
    """The same as server-sent events, until the film is ready or failed."""
    name = service.films.find(film)

    async def events() -> AsyncIterator[str]:
        before: dict[str, Any] = {}
        while not service.closing.is_set():
            try:
                told = service.films.shown(name)
            except (ApiError, AuroraError):  # it was deleted
                return
            if told != before:
                yield event(told, "progress")
            if told["status"] not in ("waiting", "watching", "live"):
                return
            before = told
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(service.closing.wait(), 0.2)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


@router.post("/{film:film}/ask", response_model=None)
async def ask(film: str, body: Question, request: Request, service: Served) -> dict[str, Any] | StreamingResponse:
    """Answers a question about what was seen so far, or up to the second `at`; with `remember` the exchange becomes
    part of the film's conversation."""
    name = service.films.find(film)
    asking = await while_connected(request, _begin(service, name, body))
    if body.stream:
        return StreamingResponse(asking.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return await while_connected(request, asking.whole())


@router.post("/{film:film}/fork", status_code=201)
async def fork(film: str, body: Name, service: Served) -> dict[str, Any]:
    """A second film that goes on from what was seen."""
    source = service.films.find(film)
    forked = (await service.films.open(source)).fork()
    with service.films.naming(body.name, source) as name:
        return await _keep(service, forked, name)


@router.post("/{film:film}/extend", status_code=202)
async def extend(film: str, request: Request, service: Served) -> dict[str, Any]:
    """Watches another video behind what was seen."""
    name = service.films.find(film)
    require_still(service, name)
    given, upload = await read_body(request, WatchOptions)
    return await start_watching(service, name, given, upload, using={}, checkpoint_seconds=None,
                        extends=service.films.facts(name)["id"])


@router.post("/{film:film}/frame")
async def frame(film: str, request: Request, service: Served,
                seconds: Annotated[float | None, Query(ge=0, le=1e9)] = None) -> dict[str, Any]:
    """Adds one image to a film, which becomes live: shown at a second of the live part, by default now."""
    name = service.films.find(film)
    picture = b""
    async for block in request.stream():
        picture += block
        if len(picture) > FRAME_BYTES:
            raise ApiError(413, f"the frame has more than {FRAME_BYTES} bytes")
    try:
        pixels = await asyncio.to_thread(decode_image, picture, formats=READABLE)
    except BadSample as error:
        raise ApiError(422, f"the body is not a readable image: {error.detail}") from error
    watch = service.films.watching(name)
    if not isinstance(watch, Live):
        require_still(service, name)
        opened = await service.films.saved(name)
        require_still(service, name)
        watch = service.films.live(name, opened.fork())
    number = watch.feed.put(pixels, seconds)
    while watch.frames < number and not watch.done.done():
        await asyncio.sleep(0.005)
    return service.films.shown(name)


@router.get("/{film:film}/state")
async def export_film(film: str, service: Served) -> StreamingResponse:
    """The film as one file, which `import`, `aurora ask` and `model.open` read."""
    name = service.films.find(film)
    if service.films.watching(name) is not None:
        path = service.folder() / "film"
        seen = (await service.films.open(name)).fork()
        await asyncio.to_thread(seen.save, path)
        file, size = path.open("rb"), path.stat().st_size
        remove(path.parent)  # the open file stays
    else:
        path = service.films.store.require(name)
        file, size = path.open("rb"), path.stat().st_size
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{id_of(name)}{SUFFIX}"'}
    return StreamingResponse(blocks(file), media_type="application/octet-stream", headers=headers)


@router.get("/{film:film}/thumbnails")
async def thumbnails(film: str, service: Served) -> dict[str, Any]:
    """Small pictures of what was seen, spread evenly, as data URLs with their seconds."""
    seen = await service.films.open(service.films.find(film))
    return {"object": "list", "data": [{"seconds": small.seconds, "url": small.url} for small in seen.thumbnails]}


@router.get("/{film:whole_film}")
async def get_film(film: str, service: Served) -> dict[str, Any]:
    """What is known of a film, how far it was watched, and the conversation that it remembers."""
    name = service.films.find(film)
    told = service.films.shown(name)
    return told if told["status"] == "damaged" else {**told, "turns": service.films.turns(name)}


@router.delete("/{film:whole_film}")
async def delete(film: str, service: Served) -> dict[str, Any]:
    """Deletes a film; watching it ends."""
    name = service.films.find(film)
    await service.films.remove(name)
    return {"id": id_of(name), "object": "film", "deleted": True}


class Asking:
    """One question to a film and its answer."""

    def __init__(self, service: Service, name: str, body: Question, answer: Answer, seen: Snapshot,
                 media: Sequence[Medium]) -> None:
        self.service, self.name, self.body, self.answer = service, name, body, answer
        self.seen, self.media = seen, media

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        text = "".join([piece async for piece in self.service.pieces(self.answer)])
        await self._remember(text)
        return {"object": "film.answer", "answer": text, **self._end()}

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events: `text` with a piece each, then `done`, or `error`."""
        text = ""
        try:
            async for piece in self.service.pieces(self.answer):
                text += piece
                yield event({"text": piece}, "text")
            await self._remember(text)
        except Exception as error:
            yield event(error_body(api_error(error)), "error")
            return
        yield event(self._end(), "done")

    def _end(self) -> dict[str, Any]:
        return {"finish_reason": self.answer.finish_reason, "frames": self.seen.frames,
                "seconds": self.seen.seconds, "usage": usage(self.answer)}

    async def _remember(self, text: str) -> None:
        if self.body.remember:
            # also when the client leaves meanwhile: what is on the disk and what is in memory stay the same
            await asyncio.shield(self.service.films.remember(self.name, self.body.question, text, self.media))


async def _keep(service: Service, film: Film, name: str) -> dict[str, Any]:
    await asyncio.to_thread(service.films.save, film, name)
    service.films.keep(name, film)
    return service.films.shown(name)


async def _begin(service: Service, name: str, body: Question) -> Asking:
    film = await service.films.open(name)
    options = service.generation(max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p,
                                 top_k=body.top_k, seed=body.seed, stop=body.stop)
    seen, media, at = film.now, film.media, body.at
    turns: list[Turn] = [*film.turns, film.turn(body.question)]
    answer = await service.ask(film, turns, options, at=at)
    if at is not None and at < seen.last:  # then the last state that was kept before it
        seen = max((kept for kept in film.history if kept.last <= at), key=lambda kept: kept.last, default=seen)
    return Asking(service, name, body, answer, seen, media)
