"""MSR-VTT: one sentence about a short clip, compared with twenty captions."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._files import Row, Videos, annotations, collect, rows
from ._judged import CaptionBenchmark


@BENCHMARK.register
class Msrvtt(CaptionBenchmark):
    """MSR-VTT: the 2,990 clips of its `test` split, or the 1,000 of `1ka`; the result says which.

    `test` is the makers' `test_videodatainfo.json`; `1ka` is `MSRVTT_JSFUSION_test.csv` with all captions of
    `MSRVTT_data.json`, or the hub's `msrvtt_test_1k.json`.
    """

    def __init__(self, *, split: Literal["test", "1ka"] = "test", annotations: str | None = None,
                 videos: str | None = None) -> None:
        self.split = split
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        names = ("test_videodatainfo.json", "*/test_videodatainfo.json") if self.split == "test" else \
            ("MSRVTT_JSFUSION_test.csv", "*/MSRVTT_JSFUSION_test.csv", "msrvtt_test_1k.json", "*test_1k*.json")
        file = annotations(folder, self.annotations, *names)[0]
        videos = Videos(folder, self.videos, "TestVideo", "videos/all", "videos", "video", ".")
        return collect(folder, self._asked(folder, file, videos))

    def _asked(self, folder: Path, file: Path, videos: Videos) -> Iterator[Item]:
        if file.suffix == ".csv":
            captions = _captions(annotations(folder, None, "MSRVTT_data.json", "*/MSRVTT_data.json")[0])
            chosen = list(rows(file))
        elif self.split == "test":
            captions = _captions(file)
            chosen = [row for row in rows(file, "videos") if row.fields.get("split", "test") == "test"]
        else:
            chosen = list(rows(file))
            captions = {row.text("video_id"): list(row.texts("caption")) for row in chosen}
        for row in chosen:
            id = row.text("video_id")
            if not captions.get(id):
                raise row.error(f"no caption of the video {id!r} is there")
            yield _item(row, id, captions[id], videos)


def _captions(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows(file, "sentences"):
        found[row.text("video_id")].append(row.text("caption"))
    return found


def _item(row: Row, id: str, references: list[str], videos: Videos) -> Item:
    return Item(id, videos.find(row, id), "Describe the video in one concise sentence.", references[0],
                max_new_tokens=64, extra={"references": references})
