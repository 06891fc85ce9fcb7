"""MLVU: multiple-choice questions about long videos, 7 tasks (dev) or 9 (test)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark, with_letters
from ._files import Row, Videos, annotations, collect, lettered, rows
from ._lmms import mean_by_family, ranked_letter

_DEV = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
_TEST = ("plotQA", "needleQA", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sportsQA", "tutorialQA")
_FILES = {
    "dev": ("json/[1-7]_*.json", "MLVU/json/[1-7]_*.json", "[1-7]_*.json", "data/test-*.parquet",
            "test-*.parquet", "*dev*.parquet"),
    # the makers' own test_multi_choice_tasks.json has no answers
    "test": ("test-ground-truth/test_mcq_gt.json", "MLVU_Test/test-ground-truth/test_mcq_gt.json", "test_mcq_gt.json",
             "json/test_mcq_gt.json", "test_multi_choice_tasks.json", "MLVU_Test/test_multi_choice_tasks.json",
             "json/*multi_choice*.json", "*multi_choice*.json", "data/test-*.parquet",
             "test-*.parquet", "*test*.parquet"),
}
_AS_WRITTEN = {"findNeedle": "needle"}  # the makers' JSON calls this task otherwise than lmms-eval


@BENCHMARK.register
class Mlvu(ChoiceBenchmark):
    """MLVU: `json/N_TASK.json` (dev), `test-ground-truth/test_mcq_gt.json` (test), or lmms-eval's Parquet; videos below
    `video/`, all of it also in a folder `MLVU` or `MLVU_Test`.

    The score is the mean of the accuracies of the split's 7 or 9 tasks. The tasks with open answers are not asked.
    """

    mean_of = "families"

    def __init__(self, *, split: Literal["dev", "test"] = "dev", annotations: str | None = None,
                 videos: str | None = None) -> None:
        self.split = split
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        return collect(folder, self._asked(folder, annotations(folder, self.annotations, *_FILES[self.split])))

    def _asked(self, folder: Path, files: Sequence[Path]) -> Iterator[Item]:
        number = 0
        for file in files:
            above = reversed(file.relative_to(folder).parents)
            videos = Videos(folder, self.videos, *((place / name).as_posix() for place in above
                                                   for name in (f"video/{file.stem}", "video", "videos", ".")))
            for row in rows(file):
                number += 1
                yield self._item(row, number, videos)

    def _item(self, row: Row, number: int, videos: Videos) -> Item:
        task = row.text("task_type" if "task_type" in row.fields else "question_type")
        task = _AS_WRITTEN.get(task, task)
        if task not in self.tasks():
            raise row.error(f"the task {task!r} is not one of {self.split}: {', '.join(self.tasks())}")
        question = row.text("question")
        options = lettered(question)
        if not options and "candidates" in row.fields:
            options = row.options("candidates")
            question = f"{question}\n{with_letters(options)}"
        options = options or tuple(LETTERS[:4])
        if self.split == "test" and "answer" not in row.fields:
            raise row.error("it has no 'answer'; MLVU_Test has them in test-ground-truth/test_mcq_gt.json")
        answer = row.text("answer")
        right = row.letter("answer", options) if len(answer.strip("(). ")) == 1 and answer not in options \
            else row.option("answer", options)
        prompt = question + ("\nOnly give the best option.\nBest option: (" if self.split == "dev" else "")
        video = videos.find(row, row.text("video_name" if "video_name" in row.fields else "video"))
        return Item(f"{task}/{number}", video, prompt, options[right], options, right, task, max_new_tokens=16)

    def tasks(self) -> Sequence[str]:
        return _DEV if self.split == "dev" else _TEST

    def compat(self, item: Item, answer: str) -> bool:
        return ranked_letter(answer) == LETTERS[item.right or 0]

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        """The mean over all tasks of the split; one that was not asked counts as 0."""
        shares = mean_by_family([item.family for item in items], right, lambda correct, asked: 100 * correct / asked)
        return sum(shares.values()) / len(self.tasks())
