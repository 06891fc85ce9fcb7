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
_ROLES = (*_BEFORE, "user", "assistant")
_SOURCES = ("file_id", "data", "file_data", "url", "image_url", "video_url", "file_url")
_SAMPLING = ("fps", "nframes", "num_frames", "max_frames")
# What clients send back of answers, and what changes no answer.
_IGNORED = ("id", "index", "annotations", "cache_control", "prompt_cache_breakpoint")
_OF_MESSAGES = ("role", "content", "type", "name", "status", "phase", "refusal", "reasoning", "reasoning_content",
                *_IGNORED)
_OF_TEXTS = ("type", "text", "logprobs", *_IGNORED)
_OF_MEDIA = ("type", "detail", "filename", "format", "uuid", *_SOURCES, *_IGNORED)
_NEUTRAL: Mapping[str, Any] = {"tool_calls": [], "function_call": None, "audio": None}


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


def read_messages(messages: Sequence[Mapping[str, Any]], settings: Settings, *, where: str = "messages",
                  system: str | None = None, skipped: Sequence[str] = ()) -> Conversation:
    """The conversation of a list of messages, which stands in the field `where`; items of a type that is `skipped` are
    left out. What the system says stands before the first question. ApiError 400 for what is not supported, 413 for
    too many media."""
    before = [system] if system else []
    turns: list[Turn] = []
    media: list[Medium] = []
    for number, message in enumerate(messages):
        place, role, kind = f"{where}[{number}]", message.get("role"), message.get("type") or "message"
        if kind in skipped:
            continue
        if kind != "message":
            raise ApiError(400, f"{place}: an item of the type {kind!r} is not supported; messages are", param=place)
        if role not in _ROLES:
            raise ApiError(400, f"{place}: the role {role!r} is not supported; {', '.join(_ROLES)} are", param=place)
        _refuse_others({key: value for key, value in message.items()
                        if key not in _NEUTRAL or value not in (None, _NEUTRAL[key])}, _OF_MESSAGES, place)
        text, shown = read_content(message.get("content"), place)
        if shown and role != "user":
            raise ApiError(400, f"{place}: media may stand in messages of the role user only", param=place)
        media += shown
        if role in _BEFORE:
            before.append(text)
        elif role == "user":
            if turns and turns[-1].answer is None:
                turns[-1] = Turn(f"{turns[-1].question}\n{text}")
            else:
                turns.append(Turn(text))
        elif not turns or turns[-1].answer is not None:
            raise ApiError(400, f"{place}: an answer of the assistant follows a message of the user", param=place)
        else:
            turns[-1] = turns[-1]._replace(answer=text)
    if len(media) > settings.parts:
        raise ApiError(413, f"{len(media)} videos and images are more than {settings.parts}")
    return Conversation(_complete(turns, before, len(media), where), tuple(media))


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
            _refuse_others(part, _OF_TEXTS, place)
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


def _complete(turns: Sequence[Turn], before: Sequence[str], media: int, where: str) -> tuple[Turn, ...]:
    if not turns or turns[-1].answer is not None:
        raise ApiError(400, "the last message must be one of the user", param=where)
    if not turns[-1].question.strip():
        raise ApiError(400, "the question is empty", param=where)
    first = turns[0]._replace(question=plain_question(turns[0].question, media))
    system = "\n".join(text for text in before if text.strip())
    if system:
        first = first._replace(question=f"{system}\n{first.question}")
    return (first, *turns[1:])


def _media(part: Mapping[str, Any], kind: str, place: str) -> list[Medium]:
    """The media of one part: of a list of frames as many as it has."""
    inside = part.get(kind)
    inside = inside if isinstance(inside, dict) else {} if inside is None else {"url": inside}
    _refuse_others(part, (kind, *_OF_MEDIA), place)
    _refuse_others(inside, _OF_MEDIA, f"{place}.{kind}")
    found = {**{key: value for key, value in part.items() if key != kind}, **inside}
    given = [key for key in _SOURCES if found.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise ApiError(400, f"{place}: the part holds {' and '.join(given)}, of which one is read", param=place)
    source = found[given[0]] if given else None
    if isinstance(source, list):
        return [_of_url(url, place) for url in source]
    if not isinstance(source, str):
        raise ApiError(400, f"{place}: the part holds no url, data or file_id", param=place)
    if given[0] == "file_id":
        return [Medium(file_id=source)]
    if given[0] in ("data", "file_data") and not source.startswith(("data:", "https:")):
        return [Medium(_decoded(source, place))]
    return [_of_url(source, place)]


def _refuse_others(given: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """ApiError 400 for a field that is not known."""
    for field in given:
        if field not in known:
            instead = '; media_io_kwargs chooses frames, as in {"video": {"fps": 2}}' if field in _SAMPLING else ""
            raise ApiError(400, f"{place}.{field} is not supported by this server{instead}", param=f"{place}.{field}",
                           code="unsupported_field")


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
