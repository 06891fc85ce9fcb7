"""OVO-Bench: questions asked while a video runs, about what was, what is, and whether enough was seen yet."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.evaluation.scoring import said_number, said_yes
from aurora.evaluation.summary import names_right_option
from aurora.interfaces import Item, Items
from aurora.options import PositiveFloat
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark
from ._files import Row, Videos, annotations, collect, rows
from ._lmms import all_digits, mean_by_family, says

_GROUPS = {"backward": ("EPM", "ASI", "HLD"), "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
           "forward": ("REC", "SSR", "CRR")}
_TASKS = {task: group for group, tasks in _GROUPS.items() for task in tasks}

_CHOICE = """
Question: {question}
Options:
{options}

Respond only with the letter corresponding to your chosen option (e.g., A, B, C). \n\
Do not include any additional text or explanation in your response.
"""
_COUNT = """
You're watching a video in which people may perform a certain type of action repetively. \n\
The person performing this kind of action are referred to as 'they' in the following statement.
You're task is to count how many times have different people in the video perform this kind of action in total.
One complete motion counts as one. \n\
Now, answer the following question: How many times did they {activity}?
Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.
Do not include any additional text or explanation in your response.
"""
_STEP = """
You're watching a tutorial video which contain a sequential of steps. \n\
The following is one step from the whole procedures: \n\
{step}
Your task is to determine if the man or woman in the video is currently performing this step.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
"""
_ENOUGH = """
You're responsible of answering questions based on the video content. \n\
The following question are relevant to the latest frames, i.e. the end of the video.
{question}
Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the video, \
provide enough information for answering the question.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
"""


@BENCHMARK.register
class OvoBench(ChoiceBenchmark):
    """OVO-Bench online: `ovo_bench_new.json` and the 644 source videos below `src_videos/`, each read once.

    Every question is asked when the video has run to its moment. `window` shows the last so many seconds only, for
    which the video is read again per question. The score is the mean of three means: backward, real-time, forward.
    """

    mean_of = "groups"

    def __init__(self, *, window: PositiveFloat | None = None, annotations: str | None = None,
                 videos: str | None = None) -> None:
        self.window = window
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        files = annotations(folder, self.annotations, "ovo_bench_new.json", "data/ovo_bench_new.json", "ovo_bench.json",
                            "*.json")
        videos = Videos(folder, self.videos, "src_videos", "data/src_videos", "videos", ".")
        return collect(folder, (item for file in files for row in rows(file) for item in self._items(row, videos)))

    def _items(self, row: Row, videos: Videos) -> Iterator[Item]:
        id, task, video = row.text("id"), row.text("task"), videos.find(row, row.text("video"))
        if task not in _TASKS:
            raise row.error(f"the task {task!r} is not one of {', '.join(_TASKS)}")
        if _TASKS[task] != "forward":
            options = row.options("options")
            right = row.option_number("gt", options)
            listed = "; ".join(f"{LETTERS[n]}. {option}" for n, option in enumerate(options)) + ";"
            yield self._item(id, video, task, _CHOICE.format(question=row.text("question"), options=listed), options,
                             right, row.seconds("realtime"))
            return
        for number, test in enumerate(row.rows("test_info")):
            at = test.seconds("realtime")
            if task == "REC":
                prompt, counted = _COUNT.format(activity=row.text("activity")), str(test.whole_number("count"))
                yield self._item(f"{id}/{number}", video, task, prompt, (), None, at, counted)
            else:
                prompt = _STEP.format(step=test.text("step")) if task == "SSR" else \
                    _ENOUGH.format(question=row.text("question"))
                right = test.option_number("type", ("No", "Yes"))
                yield self._item(f"{id}/{number}", video, task, prompt, ("Yes", "No"), 1 - right, at)

    def _item(self, id: str, video: str, task: str, prompt: str, options: tuple[str, ...], right: int | None, at: float,
              answer: str | None = None) -> Item:
        start = 0.0 if self.window is None else max(0.0, at - self.window)
        answer = options[right or 0] if answer is None else answer
        return Item(id, video, prompt, answer, options, right, task, at, start)

    def judged(self, item: Item, answer: str) -> bool | None:
        if item.family == "REC":
            number = said_number(answer)
            return None if number is None else number == int(item.answer)
        if _TASKS[item.family] == "forward":
            yes = said_yes(answer)
            return None if yes is None else yes == (item.answer == "Yes")
        return names_right_option(item, answer)

    def weights(self, families: Sequence[str]) -> Mapping[str, float] | None:
        groups = [_TASKS[task] for task in families]
        return {task: 1 / (len(set(groups)) * groups.count(_TASKS[task])) for task in families}

    def tasks(self) -> Sequence[str]:
        return tuple(_TASKS)

    def groups(self, families: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {"groups": _group_means({task: row["accuracy"] for task, row in families.items()})}

    def _mean(self, found: Mapping[str, Any]) -> float | None:
        means = _group_means({task: row["accuracy"] for task, row in found["families"].items()})
        return 100 * sum(means.values()) / len(means) if means else None

    def compat(self, item: Item, answer: str) -> bool:
        if item.family == "REC":
            return all_digits(answer) == item.answer
        if _TASKS[item.family] == "forward":
            return says(answer, item.answer)
        return LETTERS[item.right or 0] in answer.strip()

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        """lmms-eval gives three numbers; this is their mean."""
        shares = mean_by_family([item.family for item in items], right, lambda correct, asked: correct / asked)
        means = [100 * mean for mean in _group_means(shares).values()]
        return sum(means) / len(means) if means else 0


def _group_means(families: Mapping[str, float]) -> dict[str, float]:
    """The mean of the accuracies of each group's tasks."""
    groups: dict[str, list[float]] = {}
    for task, share in families.items():
        groups.setdefault(_TASKS[task], []).append(share)
    return {group: sum(groups[group]) / len(groups[group]) for group in _GROUPS if group in groups}
