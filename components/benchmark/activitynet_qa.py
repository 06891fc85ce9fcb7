"""ActivityNet-QA: open questions about short videos, judged by a language model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._files import Row, Videos, annotations, collect, rows
from ._judged import JudgedBenchmark

_KINDS = {str(number): kind for number, kind in enumerate((
    "motion", "spatial relation", "temporal relation", "yes/no", "color", "object", "location", "number", "other"))}


@BENCHMARK.register
class ActivitynetQa(JudgedBenchmark):
    """ActivityNet-QA (test): the makers' `test_q.json` and `test_a.json`, or lmms-eval's table; `v_NAME.mp4` files."""

    def __init__(self, *, annotations: str | None = None, videos: str | None = None) -> None:
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "test_q.json", "dataset/test_q.json", "data/test-*.parquet",
                            "test-*.parquet", "*.parquet", "*.jsonl")
        videos = Videos(folder, self.videos, "all_test", "videos", "video", ".")
        return collect(folder, self._asked(files, videos))

    def _asked(self, files: Sequence[Path], videos: Videos) -> Iterator[Item]:
        for file in files:
            apart = file.with_name(file.name.replace("_q.json", "_a.json"))
            answers = {row.text("question_id"): row for row in rows(apart)} if apart != file else None
            for row in rows(file):
                id = row.text("question_id")
                if answers is not None and id not in answers:
                    raise row.error(f"{apart} has no answer to the question {id!r}")
                yield _item(row, row if answers is None else answers[id], videos)


def _item(row: Row, answered: Row, videos: Videos) -> Item:
    question, name = row.text("question"), row.text("video_name")
    family = _KINDS.get(str(answered.fields.get("type", row.fields.get("type"))), "all")
    return Item(row.text("question_id"), videos.find(row, f"v_{name}", name),
                f"{question.capitalize()}? Answer the question using a single word or phrase.", answered.text("answer"),
                family=family, max_new_tokens=64, extra={"question": question})
