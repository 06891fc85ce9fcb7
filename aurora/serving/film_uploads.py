"""How a video comes to the server to be watched: in a form, under the id of an uploaded file, or under a url."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as Upload

from aurora.errors import AuroraError, BadSample
from aurora.files import remove, room_for
from aurora.images import decode_image
from aurora.inference.film import Film
from aurora.inference.visuals import UnreadableVisual
from aurora.media import media_type
from aurora.serving.errors import ApiError
from aurora.serving.films import id_of
from aurora.serving.messages import limited_sampling
from aurora.serving.service import Service
from aurora.types import State


class WatchOptions(BaseModel):
    """Which frames of a video are watched, and how; a form or a JSON object."""

    model_config = ConfigDict(extra="forbid")

    fps: Annotated[float, Field(gt=0)] | None = None
    frames: Annotated[int, Field(ge=1)] | None = None
    max_frames: Annotated[int, Field(ge=1)] | None = None
    file_id: str | None = None
    video_url: str | None = None


class NewFilm(WatchOptions):
    """The body that a film is made from."""

    name: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    live: bool = False
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    merge: str | None = None
    sort: str | None = None
    skip: str | None = None
    prompt: str | None = None
    checkpoint_seconds: Annotated[float, Field(ge=1)] | None = None


async def read_body(request: Request, kind: Any) -> tuple[Any, Upload | None]:
    """The options of a JSON object or a form, and the form's file. ApiError 400 unless there is one thing to watch."""
    upload = None
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            given = await request.json()
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not valid JSON: {error}") from error
    else:
        form = await request.form(max_files=1, max_fields=32)
        require_single(form)
        given = {key: value for key, value in form.items() if isinstance(value, str)}
        upload = next((value for key, value in form.items() if key == "file" and isinstance(value, Upload)), None)
    try:
        read = kind.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    sources = sum(source is not None for source in (upload, read.file_id, read.video_url))
    if sources + bool(getattr(read, "live", False)) != 1:
        raise ApiError(400, "give one of: a `file` in a form, file_id, video_url, or live where a film begins")
    return read, upload


def require_single(form: FormData) -> None:
    """ApiError 400 for a field that a form holds twice, as two files are, of which only the last would be read."""
    for field in form:
        if len(form.getlist(field)) > 1:
            raise ApiError(400, f"the form holds {field} {len(form.getlist(field))} times; send each by itself",
                           param=field)


async def start_watching(service: Service, name: str, given: Any, upload: Upload | None, **job: Any) -> dict[str, Any]:
    """Brings the video to where it is watched from, and begins."""
    films, folder = service.films, service.folder()
    sampling = limited_sampling(service.model.config.sampling, service.settings, fps=given.fps, frames=given.frames,
                                max_frames=given.max_frames)
    path, place = folder / "video", films.jobs / f"{id_of(name)}.0"
    try:
        if upload is not None:
            await asyncio.to_thread(copy_upload, upload, path, service.settings.upload_bytes)
        elif given.file_id is not None:
            await asyncio.to_thread(service.files.link, given.file_id, path)
            job["sha256"] = service.files.get(given.file_id).sha256 or None
        else:
            path = await service.fetch(given.video_url, folder)
        await asyncio.to_thread(_require_media, path)
        film = None if job["extends"] is None else (await films.saved(name)).fork()
        require_still(service, name)
        path.replace(place)
        films.start_job(name, {"sampling": asdict(sampling), **job}, place, film)
    finally:
        if upload is not None:
            await upload.close()
        remove(folder)
    return films.shown(name)


def require_still(service: Service, name: str) -> None:
    """ApiError 409 for a film that is being watched, or could not be."""
    watch = service.films.watching(name)
    if watch is not None and watch.status == "failed":
        raise ApiError(409, f"the film could not be watched: {watch.error.detail if watch.error else watch.status}")
    if watch is not None:
        raise ApiError(409, f"the film is {watch.status}; wait until it is ready")


def _require_media(path: Path) -> None:
    try:
        media_type(path)
    except AuroraError as error:
        raise UnreadableVisual(str(error).replace(repr(str(path)), "the file")) from error


def require_sound(film: Film) -> None:
    """AuroraError for a film from elsewhere, whose file may hold anything, that its model cannot read on from or that
    cannot be shown."""
    model, backbone = film.model, film.model.model.backbone
    grows, state = not backbone.constant_state, backbone.init_state(1)  # in the third dimension

    def kinds(of: State) -> dict[str, Any]:
        return {name: (t.dtype, *t.shape[:2], *t.shape[2 + grows :]) for name, t in of.items()}

    for seen in (film.now, *film.history):
        hidden = seen.memory.hidden
        if kinds(seen.memory.state) != kinds(state) or not all(
                t.isfinite().all() for name, t in seen.memory.state.items() if state[name].isfinite().all()):
            raise AuroraError("the film's state has other names, kinds or shapes than the model's, or is not finite")
        if (hidden is None and seen.frames) or (hidden is not None and not (
                hidden.is_floating_point() and hidden.shape == (1, backbone.hidden_size) and hidden.isfinite().all())):
            raise AuroraError("the film's hidden state is not one of the model")
        for shot in seen.pending:
            size = shot.pixels.shape[1:]
            if model.layout.prepare.shape(*size) != size or shot.keep != model.layout.tokens(*size):
                raise AuroraError(f"the film holds a frame of {size[1]}×{size[0]} pixels with {shot.keep} tokens, as "
                                  "the model makes none")
    for small in film.thumbnails:
        try:
            decode_image(small.jpeg, formats=("JPEG",))
        except BadSample as error:
            raise AuroraError("a picture of the film is not a readable JPEG") from error
    film.question_ids([*film.turns, film.turn("?")])


def copy_upload(upload: Any, path: Path, most: int) -> None:
    """Writes an uploaded file. ApiError 413 when it is too large."""
    with room_for(path), path.open("wb") as file:
        for block in iter(lambda: upload.file.read(1 << 20), b""):
            file.write(block)
            if file.tell() > most:
                raise ApiError(413, f"the file has more than {most} bytes")
