"""VATEX: one sentence about a short clip, compared with ten captions."""

from pathlib import Path

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._files import Row, Videos, annotations, collect, rows
from ._judged import CaptionBenchmark

_PROMPT = """Provide a brief single-sentence caption for the last video below. Do not give any reasoning, just the \
caption. You must follow the captioning style of the preceding videos. Do not start your response with "Output:", just \
provide the caption.
[video1] output: A man picks up a can of shoe paste, a towel, and brush from a table.
[video2] output: A person places the frying pan on the stove and then another person flips over the food that is in it.
[video3] output: A woman describes and demonstrates how to create a colorful cross stitch design.
[video4] output: A little girl uses the grass in her yard as well as a blue mat to do flips.
"""


@BENCHMARK.register
class Vatex(CaptionBenchmark):
    """VATEX (English, test): the makers' JSON or lmms-eval's table of {videoID, enCap}, and the clips."""

    main = "bleu_1"  # the column of the paper

    def __init__(self, *, annotations: str | None = None, videos: str | None = None) -> None:
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "vatex_public_test_english*.json", "vatex_test/*.parquet",
                            "data/*test*.parquet", "*test*.parquet", "*.parquet", "*.json*")
        videos = Videos(folder, self.videos, "vatex_test", "videos", "video", ".")
        return collect(folder, (_item(row, videos) for file in files for row in rows(file)))


def _item(row: Row, videos: Videos) -> Item:
    id, references = row.text("videoID"), row.texts("enCap")
    return Item(id, videos.find(row, id), _PROMPT, references[0], max_new_tokens=64,
                extra={"references": list(references)})
