"""MVBench: 20 tasks of 200 multiple-choice questions about short clips."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from aurora.errors import AuroraError, suggest
from aurora.interfaces import Item, Items
from aurora.registry import BENCHMARK

from ._choice import LETTERS, ChoiceBenchmark, with_letters
from ._files import Row, Videos, annotations, collect, rows
from ._lmms import lone_letter, mean_by_family

# where the archives of each task unpack to: cut into clips as lmms-eval has them, then as the makers publish them
_VIDEOS = {
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "action_count": ("perception/videos",),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "character_order": ("perception/videos",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/video_fps3_hq"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "moving_attribute": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "object_shuffle": ("perception/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "unexpected_action": ("FunQA_test/test",),
}
_PICTURES = {"episodic_reasoning": ("tvqa/frames_fps3_hq",)}
"""Where a task's videos are folders of pictures, 3 a second, as the makers publish them."""
_NOT_IN_THE_PAPER = ("action_antonym", "episodic_reasoning", "fine_grained_pose")
_CUT = "_segment"


@BENCHMARK.register
class Mvbench(ChoiceBenchmark):
    """MVBench: `json/TASK.json` (or Parquet by task) and the unpacked archives below `video/`.

    `subtasks` are all 20, the 17 of the paper's Table B6, or names. The score is the mean of the tasks' accuracies.
    """

    mean_of = "families"

    def __init__(self, *, subtasks: Literal["all", "paper17"] | Sequence[str] = "all", annotations: str | None = None,
                 videos: str | None = None) -> None:
        self.subtasks = _chosen(subtasks)
        self.annotations = annotations
        self.videos = videos

    def items(self, folder: Path) -> Items:
        return collect(folder, (item for task in self.subtasks for item in self._task(folder, task)))

    def _task(self, folder: Path, task: str) -> Iterator[Item]:
        given = None if self.annotations is None else self.annotations.replace("TASK", task)
        files = annotations(folder, given, f"json/{task}.json", f"{task}.json", f"{task}/*.parquet",
                            f"data/{task}/*.parquet", f"{task}.parquet", f"{task}.jsonl")
        above = ("video/", "", "video/data0613/", "data0613/")
        places, pictures = ([f"{folders}{place}" for place in where.get(task, ()) for folders in above]
                            for where in (_VIDEOS, _PICTURES))
        videos = Videos(folder, self.videos, *places, f"video/{task}", "video", ".", pictures=pictures)
        for number, row in enumerate((row for file in files for row in rows(file)), 1):
            yield _item(row, task, number, videos)

    def tasks(self) -> Sequence[str]:
        return self.subtasks

    def compat(self, item: Item, answer: str) -> bool:
        return lone_letter(answer) == LETTERS[item.right or 0]

    def compat_score(self, items: Sequence[Item], answers: Sequence[str], right: Sequence[bool]) -> float:
        """The mean over tasks of accuracies that leave empty answers out."""
        counted = [(item.family, one) for item, answer, one in zip(items, answers, right, strict=True) if answer != ""]
        shares = mean_by_family([family for family, _ in counted], [one for _, one in counted],
                                lambda correct, asked: 100 * correct / asked)
        families = list(dict.fromkeys(item.family for item in items))
        return sum(shares.get(family, 0) for family in families) / len(families)


def _chosen(subtasks: str | Sequence[str]) -> list[str]:
    if subtasks == "all":
        return list(_VIDEOS)
    if subtasks == "paper17":
        return [task for task in _VIDEOS if task not in _NOT_IN_THE_PAPER]
    for name in subtasks:
        if name in ("all", "paper17"):
            raise AuroraError(f"benchmark 'mvbench': {name!r} stands for several subtasks; write subtasks={name}, "
                              "without a list")
        if name not in _VIDEOS:
            raise AuroraError(f"benchmark 'mvbench': no subtask {name!r}.{suggest(name, _VIDEOS)}")
    return list(subtasks)


def _item(row: Row, task: str, number: int, videos: Videos) -> Item:
    options = row.options("candidates")
    right = row.option("answer", options)
    prompt = f"Question:{row.text('question')}\nOption:\n{with_letters(options)}\nOnly give the best option.\n"
    video = videos.find(row, row.text("video"))
    start, stop = (0.0, None) if _CUT in video else row.span("start", "end")
    return Item(f"{task}/{number}", video, prompt, options[right], options, right, task, start=start, stop=stop,
                max_new_tokens=16)
