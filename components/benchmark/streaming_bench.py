"""StreamingBench, real-time visual understanding: five questions per video, each asked while it runs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aurora.interfaces import Item, Items
from aurora.options import PositiveFloat
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark
from ._files import Row, Videos, annotations, collect, rows, without_label

_BEFORE = ("You are an advanced video question-answering AI assistant. You have been provided with some frames from "
           "the video and a multiple-choice question related to the video. Your task is to carefully analyze the video "
           "and provide the best answer to question, choosing from the four options provided. Respond with only the "
           "letter (A, B, C, or D) of the correct option.")


@BENCHMARK.register
class StreamingBench(ChoiceBenchmark):
    """StreamingBench real-time: `questions_real.json` or the hub's CSV, and the source videos, each read once.

    Every question is asked when the video has run to its time stamp, after all that was shown before; with `window: 60`
    only after the last 60 seconds, for which the video is read again per question. lmms-eval has no such task:
    `lmms_compat` is what the makers' own script counts.
    """

    compat_unit = 100.0

    def __init__(self, *, window: PositiveFloat | None = None, annotations: str | None = None,
                 videos: str | None = None) -> None:
        self.window = window
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "questions_real.json", "*/questions_real.json",
                            "Real_Time_Visual_Understanding.csv", "*/Real_Time_Visual_Understanding.csv")
        videos = Videos(folder, self.videos, "real", "data/real", "videos", "src/data/videos", ".",
                        "Real-Time Visual Understanding")
        return collect(folder, self._asked(files, videos))

    def _asked(self, files: Sequence[Path], videos: Videos) -> Iterator[Item]:
        number = 0
        for file in files:
            for row in rows(file):
                if "questions" not in row.fields:
                    yield self._item(row, row.text("question_id"), _of_the_hub(row, videos))
                    continue
                name = Path(row.text("video_path").replace("\\", "/")).stem
                video = videos.find(row, *_names(row.text("video_path")))
                for asked in row.rows("questions"):
                    number += 1
                    yield self._item(asked, f"{name}/{number}", video)

    def _item(self, row: Row, id: str, video: str) -> Item:
        options = tuple(without_label(option) for option in row.options("options"))
        right, at = row.letter("answer", options), row.seconds("time_stamp")
        listed = "\n".join(f"{LETTERS[n]}. {option}" for n, option in enumerate(options))
        prompt = f"{_BEFORE}\n\nQuestion: {row.text('question')}\n\nOptions:\n{listed}\n\nThe best option is:"
        start = 0.0 if self.window is None else max(0.0, at - self.window)
        return Item(id, video, prompt, options[right], options, right, row.text("task_type"), at, start,
                    max_new_tokens=16)

    def compat(self, item: Item, answer: str) -> bool:
        return answer[:1] == LETTERS[item.right or 0]

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        """Empty answers are left out."""
        counted = [one for answer, one in zip(answers, right, strict=True) if answer]
        return sum(counted) / len(counted) if counted else 0


def _names(path: str) -> tuple[str, ...]:
    """What a video may be called: as the makers' script renames it, or as it lies in the archives."""
    name = path.replace("\\", "/").removeprefix("./")
    sample = re.search(r"sample_\d+", name)
    return (Path(name).name, name, *((f"{sample[0]}/video.mp4", f"{sample[0]}.mp4") if sample else ()))


def _of_the_hub(row: Row, videos: Videos) -> str:
    """The video of a row of the hub's table, whose id names it."""
    sample = re.search(r"sample_\d+", row.text("question_id"))
    if sample is None:
        raise row.error(f"'question_id' must name a sample_NUMBER, not {row.text('question_id')!r}")
    return videos.find(row, *_names(f"{sample[0]}_real.mp4"))
