"""LVBench: multiple-choice questions about videos of an hour and more."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark, with_letters
from ._files import Row, Videos, annotations, collect, lettered, rows
from ._lmms import ranked_letter


@BENCHMARK.register
class Lvbench(ChoiceBenchmark):
    """LVBench: the makers' `video_info.meta.jsonl` or lmms-eval's Parquet, and the videos under their YouTube ids."""

    compat_unit = 100.0

    def __init__(self, *, annotations: str | None = None, videos: str | None = None) -> None:
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "video_info.meta.jsonl", "data/*.parquet", "train-*.parquet",
                            "*.parquet", "*.jsonl")
        videos = Videos(folder, self.videos, "all_videos", "videos", "video", ".")
        return collect(folder, (item for file in files for row in rows(file) for item in _items(row, videos)))

    def compat(self, item: Item, answer: str) -> bool:
        return ranked_letter(answer) == LETTERS[item.right or 0]

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        return sum(right) / len(right) if right else 0


def _items(row: Row, videos: Videos) -> Iterator[Item]:
    """A line of the makers holds a video and its questions; a row of the Parquet is a question."""
    for asked in row.rows("qa") if "qa" in row.fields else [row]:
        video = videos.find(row, row.text("key" if "qa" in row.fields else "video_path"))
        question = asked.text("question")
        options = lettered(question)
        if not options and asked.fields.get("options"):
            options = asked.options("options")
            question = f"{question}\n{with_letters(options)}"
        options = options or tuple(LETTERS[:4])
        right = asked.letter("answer", options)
        kinds = asked.fields.get("question_type") or "all"
        family = kinds if isinstance(kinds, str) else " + ".join(asked.texts("question_type"))
        yield Item(asked.text("uid" if "uid" in asked.fields else "id"), video,
                   f"{question}\nAnswer the question with the option letter", options[right], options, right,
                   family, max_new_tokens=16)
