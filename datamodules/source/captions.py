from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError, BadSample
from aurora.registry import SOURCE

from ._records import Parsed, RecordSource, asked, chosen, looks_like_media, text

PROMPTS = ("Describe this in detail.", "What do you see? Give a detailed description.",
           "Write a description of what is shown.", "Explain what can be seen here.")


@SOURCE.register
class CaptionsSource(RecordSource):
    """Records (.json, .jsonl, .csv, .tsv, .parquet) with a field `caption`, or with `question` and `answer`.

    `path` is the field that names, or holds, a picture or video; without it samples are text. Paths start from the
    folder `images`, or from `videos` where that is given. Captions are asked for with one of `prompts`, chosen by the
    sample's key. A caption that is a list is the entry with "idx" -1, which speaks of a whole video, or else the first.
    """

    def __init__(
        self, *, folder: Path, annotations: str | Sequence[str], caption: str | None = None, path: str | None = None,
        question: str | None = None, answer: str | None = None, prompts: Sequence[str] = PROMPTS,
        images: str = ".", videos: str | None = None,
    ) -> None:
        if (caption is None) == (question is None or answer is None) or not prompts:
            raise AuroraError(f"source 'captions': give caption ({caption!r}) with prompts, or question ({question!r}) "
                              f"and answer ({answer!r}): the names of fields")
        super().__init__(folder=folder, annotations=annotations)
        self._caption, self._path, self._question, self._answer = caption, path, question, answer
        self._prompts, self._below = prompts, images if videos is None else videos

    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        if self._caption is not None:
            unseen = [] if self._path else [name for name, value in record.items() if looks_like_media(value)]
            if unseen:
                raise BadSample("field", f"a caption of nothing: source.path={unseen[0]} shows what it speaks of")
            turns = asked(chosen(self._prompts, key), _caption(field(record, self._caption)))
        else:
            turns = asked(field(record, self._question), field(record, self._answer))
        return Parsed(turns, () if self._path is None else (field(record, self._path),), self._below)


def field(record: Mapping[str, Any], name: str | None) -> Any:
    """A field of a record. BadSample when it is not there."""
    if name is None or name not in record:
        raise BadSample("field", f"no field {name!r}; there are {', '.join(map(str, record))}")
    return record[name]


def _caption(value: Any) -> str:
    if isinstance(value, list) and value:
        whole = [one for one in value if isinstance(one, Mapping) and str(one.get("idx")) == "-1"]
        value = (whole or value)[0]
        value = value.get("content") if isinstance(value, Mapping) else value
    return text(value, "caption")
