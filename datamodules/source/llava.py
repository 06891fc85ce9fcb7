import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.errors import BadSample
from aurora.registry import SOURCE

from ._records import Parsed, RecordSource, conversation, looks_like_media

FIELDS = ("image", "images", "video", "videos")


@SOURCE.register
class LlavaSource(RecordSource):
    """Records of {"id", "image" | "images" | "video", "conversations"}, as LLaVA and most that follow it have.

    `annotations` are one or several files (.json, .jsonl, .parquet) below the dataset's folder, `images` and `videos`
    the folders that paths in them start from. A record without image and video is text; several images are a list.
    A video that is a folder is the pictures in it. Speakers may be human and gpt, or user and assistant; what a
    system says is put before the next question.
    """

    def __init__(
        self, *, folder: Path, annotations: str | Sequence[str], images: str = ".", videos: str = "."
    ) -> None:
        super().__init__(folder=folder, annotations=annotations)
        self._images, self._videos = images, videos

    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        images, videos = _several(record, "image", "images"), _several(record, "video", "videos")
        if len(videos) > 1 or (images and videos):
            raise BadSample("media", f"{len(images)} images and {len(videos)} videos in one sample")
        if not images and not videos:
            _check_no_other_field(record)
        turns = conversation(record.get("conversations", record.get("messages")))
        return Parsed(turns, videos, self._videos) if videos else Parsed(turns, images, self._images)


def _several(record: Mapping[str, Any], *fields: str) -> list[Any]:
    """The media that a record names in one of its fields; "" and null in their place name none."""
    given = [record[field] for field in fields if record.get(field)]
    if len(given) > 1:
        raise BadSample("media", f"media are named in {' and in '.join(fields)}")
    return [one for value in given for one in (value if isinstance(value, list) else [value])]


def _check_no_other_field(record: Mapping[str, Any]) -> None:
    """BadSample when a record without media has a field that seems to be meant for some."""
    for field, value in record.items():
        if field in ("id", "conversations", "messages") or not value:
            continue
        if looks_like_media(value) or (difflib.get_close_matches(field.lower(), FIELDS, cutoff=0.7)
                                       and isinstance(value, (str, list, Mapping))):
            raise BadSample("field", f"{field!r} looks like media ({str(value)[:80]}), which {', '.join(FIELDS)} name")
