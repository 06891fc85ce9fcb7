"""What clients send as messages, in every form that is in use, as turns of a conversation and the media it is about."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aurora.interfaces import Sampling, Turn
from aurora.markers import plain_question
from aurora.serving.errors import ApiError
from aurora.serving.settings import Settings

_DATA = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*(?P<base64>;base64),", re.IGNORECASE)
_TEXTS = ("text", "input_text", "output_text")
_MEDIA = ("image_url", "video_url", "input_image", "input_video", "file", "input_file", "video")
_BEFORE = ("system", "developer")


class Medium(NamedTuple):
    """A video or an image: the bytes of its file, the id of an uploaded one, or where it can be fetched."""

    data: bytes | None = None
    file_id: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Conversation:
    """What was said, the last turn without an answer, and what it is about, in the order in which it was shown."""

    turns: tuple[Turn, ...]
    media: tuple[Medium, ...]


def read_messages(messages: Sequence[Mapping[str, Any]], settings: Settings) -> Conversation:
    """The conversation of a list of messages. What the system says stands before the first question. ApiError 400 for
    what is not supported, 413 for too many media."""
    before: list[str] = []
    turns: list[Turn] = []
    media: list[Medium] = []
    for number, message in enumerate(messages):
        where, role = f"messages[{number}]", message.get("role")
        text, shown = read_content(message.get("content"), where)
        if shown and role != "user":
            raise ApiError(400, f"{where}: media may stand in messages of the role user only", param=where)
        media += shown
        if role in _BEFORE:
            before.append(text)
        elif role == "user":
            if turns and turns[-1].answer is None:
                turns[-1] = Turn(f"{turns[-1].question}\n{text}")
            else:
                turns.append(Turn(text))
        elif role == "assistant":
            if not turns or turns[-1].answer is not None:
                raise ApiError(400, f"{where}: an answer of the assistant follows a message of the user", param=where)
            turns[-1] = turns[-1]._replace(answer=text)
        else:
            raise ApiError(400, f"{where}: the role {role!r} is not supported; system, developer, user and assistant "
                                "are", param=where)
    if len(media) > settings.parts:
        raise ApiError(413, f"{len(media)} videos and images are more than {settings.parts}")
    return Conversation(_complete(turns, before, len(media)), tuple(media))


def read_content(content: Any, where: str) -> tuple[str, list[Medium]]:
    """The text and the media of one message, whose content is a string or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, f"{where}: the content is neither a string nor a list of parts", param=where)
    texts: list[str] = []
    media: list[Medium] = []
    for number, part in enumerate(content):
        kind, place = part.get("type"), f"{where}.content[{number}]"
        if kind in _TEXTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _MEDIA:
            media += _media(part, str(kind), place)
        else:
            raise ApiError(400, f"{place}: a part of the type {kind!r} is not supported; these are: "
                                f"{', '.join((*_TEXTS, *_MEDIA))}", param=place)
    return "\n".join(texts), media


def read_sampling(given: Mapping[str, Any] | None, own: Sampling, settings: Settings) -> Sampling:
    """Which frames are watched: the server's own choice, or the `fps` or `num_frames` of a client, one of which clears
    the other. Never more than the server allows."""
    video = (given or {}).get("video") or {}
    if not isinstance(video, dict):
        raise ApiError(400, f"media_io_kwargs.video is {video!r:.100}; it must be an object such as {{\"fps\": 2}}",
                       param="media_io_kwargs")
    video = dict(video)
    fps, frames = video.pop("fps", None), video.pop("num_frames", None)
    if unknown := [*video, *(key for key in given or {} if key != "video")]:
        raise ApiError(400, f"media_io_kwargs.{unknown[0]} is not supported; video.fps and video.num_frames are",
                       param="media_io_kwargs")
    return limited_sampling(own, settings, fps=fps, frames=frames)


def limited_sampling(own: Sampling, settings: Settings, *, fps: float | None = None, frames: int | None = None,
                     max_frames: int | None = None) -> Sampling:
    """The same from single options; ApiError 400 where two exclude each other or one is not above 0."""
    if fps is not None and frames is not None:
        raise ApiError(400, "give the rate (fps) or the number of frames, not both")
    for name, value in (("fps", fps), ("frames", frames), ("max_frames", max_frames)):
        if value is not None and not (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0):
            raise ApiError(400, f"{name} is {value!r:.100}; it must be a number above 0", param=name)
        if name != "fps" and isinstance(value, float) and not value.is_integer():
            raise ApiError(400, f"{name} is {value!r}; it must be a whole number", param=name)
    if fps is None and frames is None:
        fps, frames = own.fps, own.frames
        max_frames = own.max_frames if max_frames is None else max_frames
    if frames is not None:
        return Sampling(frames=min(int(frames), settings.max_frames, int(max_frames or settings.max_frames)))
    assert fps is not None
    return Sampling(fps=min(fps, settings.max_fps), max_frames=min(int(max_frames or settings.max_frames),
                                                                   settings.max_frames))


def _complete(turns: Sequence[Turn], before: Sequence[str], media: int) -> tuple[Turn, ...]:
    if not turns or turns[-1].answer is not None:
        raise ApiError(400, "the last message must be one of the user", param="messages")
    if not turns[-1].question.strip():
        raise ApiError(400, "the question is empty", param="messages")
    first = turns[0]._replace(question=plain_question(turns[0].question, media))
    system = "\n".join(text for text in before if text.strip())
    if system:
        first = first._replace(question=f"{system}\n{first.question}")
    return (first, *turns[1:])


def _media(part: Mapping[str, Any], kind: str, place: str) -> list[Medium]:
    """The media of one part: of a list of frames as many as it has."""
    inside = part.get(kind)
    inside = inside if isinstance(inside, dict) else {} if inside is None else {"url": inside}
    if isinstance(inside.get("url"), list):
        return [_of_url(url, place) for url in inside["url"]]
    found = {**part, **inside}
    if isinstance(file_id := found.get("file_id"), str):
        return [Medium(file_id=file_id)]
    if isinstance(data := found.get("data"), str):
        return [_of_url(data, place) if data.startswith("data:") else Medium(_decoded(data, place))]
    if isinstance(data := found.get("file_data"), str) and not data.startswith(("data:", "https:")):
        return [Medium(_decoded(data, place))]
    for key in ("url", "image_url", "video_url", "file_data", "file_url"):
        if isinstance(url := found.get(key), str):
            return [_of_url(url, place)]
    raise ApiError(400, f"{place}: the part holds no url, data or file_id", param=place)


def _of_url(url: Any, place: str) -> Medium:
    if not isinstance(url, str):
        raise ApiError(400, f"{place}: a url is a string", param=place)
    if found := _DATA.match(url):
        return Medium(_decoded(url[found.end():], place))
    if url.startswith("https://"):
        return Medium(url=url)
    raise ApiError(400, f"{place}: a url begins with https:// or with data:…;base64,", param=place)


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # some wrap its lines
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{place}: the data is not valid base64", param=place) from error
