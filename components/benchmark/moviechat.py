"""MovieChat-1K: open questions about films, about the whole or asked at a moment; judged by a language model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._files import Row, Videos, annotations, collect, rows, whole
from ._judged import JudgedBenchmark

_BEFORE = ("You are able to understand the visual content that the user provides.Follow the instructions carefully and "
           "explain your answers in detail.")


@BENCHMARK.register
class Moviechat(JudgedBenchmark):
    """MovieChat-1K (test): the makers' `annotations/NAME.json` or lmms-eval's table, and the videos.

    `mode` is `global`, or `breakpoint`: each question is asked when the film has run to its frame, in one pass. In a
    table, whose moments are frames as well, `fps` says how many of them are a second.
    """

    def __init__(self, *, mode: Literal["global", "breakpoint"] = "global", fps: float = 25.0,
                 annotations: str | None = None, videos: str | None = None) -> None:
        self.mode = mode
        self.fps = fps
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "annotations/*.json", f"*{self.mode}*/*.parquet",
                            f"*{self.mode}*.parquet", f"*{self.mode}*.json*", "data/test-*.parquet", "test-*.parquet",
                            "jsons/*.json")
        videos = Videos(folder, self.videos, "videos", "Test_Videos", "raw_videos", ".")
        return collect(folder, (item for file in files for item in self._of_file(file, videos)))

    def _of_file(self, file: Path, videos: Videos) -> Iterator[Item]:
        if file.parent.name in ("annotations", "jsons"):
            film = whole(file)
            info = film.fields.get("info")
            if not isinstance(info, dict):
                raise film.error("it has no 'info', which names the video")
            about = Row(f"{file}, info", info)
            video = videos.find(about, about.text("video_path"))
            fps = about.number("fps") if self.mode == "breakpoint" else self.fps
            for number, asked in enumerate(film.rows(self.mode), 1):
                yield self._item(asked, f"{file.stem}/{number}", video, fps)
        else:
            for number, row in enumerate(rows(file), 1):
                yield self._item(row, str(number), videos.find(row, row.text("video_name")), self.fps)

    def _item(self, row: Row, id: str, video: str, fps: float) -> Item:
        if self.mode == "breakpoint" and fps <= 0:
            raise row.error("'fps' of the video must be above 0")
        question = row.text("question")
        return Item(id, video, _BEFORE + question, row.text("answer"), family=self.mode,
                    at=row.number("time") / fps if self.mode == "breakpoint" else None, max_new_tokens=64,
                    extra={"question": question})
