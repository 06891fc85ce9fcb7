"""TimeScope: short clips hidden in videos of a minute to many hours, and questions about them."""

from pathlib import Path

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark
from ._files import Row, Videos, annotations, collect, lettered, rows
from ._lmms import first_letter


@BENCHMARK.register
class Timescope(ChoiceBenchmark):
    """TimeScope, or with `long` LongTimeScope: a table of {id, video, input, answer, type, length} and the videos.

    Families are the lengths in seconds: together they are the curve of finding a needle.
    """

    def __init__(self, *, long: bool = False, annotations: str | None = None, videos: str | None = None) -> None:
        self.long = long
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "data/*.parquet", "test-*.parquet", "*.parquet", "text/*.json*",
                            "*.jsonl", "*.json", "*.csv")
        videos = Videos(folder, self.videos, "videos", "video", ".")
        return collect(folder, (_item(row, videos) for file in files for row in rows(file)))

    def compat(self, item: Item, answer: str) -> bool:
        return first_letter(answer, "ABCDEF", long=self.long) == LETTERS[item.right or 0]


def _item(row: Row, videos: Videos) -> Item:
    prompt = row.text("input")
    options = lettered(prompt) or tuple(LETTERS[:6])
    right = row.letter("answer", options)
    return Item(row.text("id"), videos.find(row, row.text("video")), prompt, options[right], options, right,
                f"{row.number('length'):05g} s", max_new_tokens=16, extra={"type": row.text("type")})
