import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.errors import BadSample
from aurora.registry import SOURCE

from ._records import Parsed, RecordSource, agreed, asked
from .captions import field

_CLOCK = re.compile(r"(?:(\d+):)?(?:(\d+):)?(\d+(?:\.\d+)?)")


@SOURCE.register
class TableSource(RecordSource):
    """Tables (.csv, .tsv, .parquet; .json and .jsonl too), one sample per row; options name columns.

    `image` and `video` hold paths below the dataset's folder, the bytes of a file, or {"bytes", "path"}; a row without
    either is text. `start` and `stop` say which seconds of the video are meant, as numbers or as h:mm:ss. Of several
    answers the most frequent one counts.
    """

    def __init__(
        self, *, folder: Path, files: str | Sequence[str], question: str, answer: str, image: str | None = None,
        video: str | None = None, start: str | None = None, stop: str | None = None,
    ) -> None:
        super().__init__(folder=folder, annotations=files)
        self._question, self._answer, self._start, self._stop = question, answer, start, stop
        self._media = [name for name in (image, video) if name is not None]

    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        turns = asked(field(record, self._question), agreed(field(record, self._answer)))
        found = [one for name in self._media if (one := field(record, name))]
        media = found[0] if len(found) == 1 and isinstance(found[0], list) else found
        return Parsed(turns, media, span=self._span(record))

    def _span(self, record: Mapping[str, Any]) -> tuple[float, float] | None:
        if self._start is None or self._stop is None:
            return None
        start, stop = seconds(field(record, self._start)), seconds(field(record, self._stop))
        if not 0 <= start < stop:
            raise BadSample("range", f"from {start} to {stop} seconds")
        return start, stop


def seconds(value: Any) -> float:
    """Seconds of a number or a clock's time such as 1:02:03.5. BadSample for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        raise BadSample("range", f"{value!r} is not a time in seconds or h:mm:ss")
    parts = [float(part) for part in clock.groups() if part is not None]
    return sum(part * 60.0**place for place, part in enumerate(reversed(parts)))
