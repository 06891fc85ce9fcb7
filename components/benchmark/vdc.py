"""VDC: detailed captions of clips, judged by the questions that a language model answers from them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._files import Row, Videos, annotations, collect, rows
from ._judged import JudgedBenchmark

_PARTS = ("short", "camera", "background", "main_object", "detailed")
_PROMPTS = Path(__file__).with_name("vdc_prompts.json")


@BENCHMARK.register
class Vdc(JudgedBenchmark):
    """VDC: `VDC_1k.jsonl` with `VDCScore_qa/PART.jsonl`, or a table `PART*.parquet` of {video_name, caption, qa_list}.

    `part` is one of the five captions, or all of them. Which of 16 to 24 prompts a clip is given depends on its name
    only; lmms-eval draws it anew in every run.
    """

    judge = "vdc"

    def __init__(self, *, part: Literal["all", "short", "camera", "background", "main_object", "detailed"] = "all",
                 annotations: str | None = None, videos: str | None = None) -> None:
        self.parts = _PARTS if part == "all" else (part,)
        self.annotations = annotations
        self.videos = videos
        self.prompts: Mapping[str, list[str]] = json.loads(_PROMPTS.read_text(encoding="utf-8"))

    def items(self, folder: Path) -> Items:
        videos = Videos(folder, self.videos, "videos", "videos/videos", "Test_Videos", "video", ".")
        return collect(folder, (item for part in self.parts for item in self._part(folder, part, videos)))

    def weights(self, families: Sequence[str]) -> Mapping[str, float] | None:
        return dict.fromkeys(families, 1 / len(families))

    def _part(self, folder: Path, part: str, videos: Videos) -> Iterator[Item]:
        given = None if self.annotations is None else self.annotations.replace("PART", part)
        files = annotations(folder, given, "VDC_1k.jsonl", f"{part}*/*.parquet", f"{part}*.parquet", f"{part}*.jsonl",
                            f"{part}*.json")
        if "VDC_1k" in files[0].name:
            asked = _questions(annotations(folder, None, f"VDCScore_qa/{part}.jsonl", f"{part}.jsonl")[0])
            for row in (row for file in files for row in rows(file)):
                if row.text("video_id") not in asked:
                    raise row.error(f"VDCScore_qa/{part}.jsonl has no questions about {row.text('video_id')!r}")
                yield self._item(row, part, row.text(f"{part}_caption"), asked[row.text("video_id")], videos)
        else:
            for row in (row for file in files for row in rows(file)):
                yield self._item(row, part, row.text("caption"), _pairs(row, "qa_list"), videos)

    def _item(self, row: Row, part: str, caption: str, questions: list[dict[str, str]], videos: Videos) -> Item:
        name = row.text("video_name")
        drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        prompts = self.prompts[part]
        return Item(f"{part}/{name}", videos.find(row, name), prompts[drawn % len(prompts)], caption, family=part,
                    max_new_tokens=1024, extra={"qa_list": questions})


def _questions(file: Path) -> dict[str, list[dict[str, str]]]:
    """Questions and answers by the id of the video: every line is an object of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(file):
        for id in row.fields:
            found[id] = _pairs(row, id)
    return found


def _pairs(row: Row, key: str) -> list[dict[str, str]]:
    return [{"question": one.text("question"), "answer": one.text("answer")} for one in row.rows(key)]
