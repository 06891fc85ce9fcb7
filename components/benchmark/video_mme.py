"""Video-MME: 2,700 multiple-choice questions about short, medium and long videos."""

from pathlib import Path

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark
from ._files import Row, Videos, annotations, collect, rows, without_label
from ._lmms import ranked_letter

_BEFORE = ("Select the best answer to the following multiple-choice question based on the video and the subtitles. "
           "Respond with only the letter (A, B, C, or D) of the correct option.")
_AFTER = "Answer with the option's letter from the given choices directly."


@BENCHMARK.register
class VideoMme(ChoiceBenchmark):
    """Video-MME without subtitles: its Parquet, and `data/VIDEO_ID.mp4`. With `long` only about the long videos."""

    def __init__(self, *, long: bool = False, annotations: str | None = None, videos: str | None = None) -> None:
        self.long = long
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "videomme/test-*.parquet", "test-*.parquet", "*videomme*.parquet",
                            "*.parquet", "*videomme*.json*", "test.json*")
        videos = Videos(folder, self.videos, "data", "videos", "video", ".")
        asked = (row for file in files for row in rows(file) if not self.long or row.text("duration") == "long")
        return collect(folder, (_item(row, videos) for row in asked))

    def compat(self, item: Item, answer: str) -> bool:
        return ranked_letter(answer) == LETTERS[item.right or 0]


def _item(row: Row, videos: Videos) -> Item:
    options = tuple(map(without_label, row.options("options")))
    right = row.letter("answer", options)
    prompt = "\n".join([_BEFORE, row.text("question"), *row.texts("options"), "\n" + _AFTER])
    return Item(row.text("question_id"), videos.find(row, row.text("videoID")), prompt, options[right], options, right,
                row.text("duration"), max_new_tokens=16,
                extra={key: row.text(key) for key in ("domain", "sub_category", "task_type") if key in row.fields})
