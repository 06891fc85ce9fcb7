"""Builds Blocks world on disk: WebDataset shards for the four stages, and held-out questions about mp4 files.

    FOLDER/pretrain, vision, language_image, language_video    shards, one dataset per stage
    FOLDER/heldout/questions.jsonl, videos/*.mp4               four-way questions of held-out combinations: the test
    FOLDER/validation/...                                      others, to tune on
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from aurora.errors import AuroraError
from aurora.interfaces import Turn

from ..executor.process import ProcessExecutor
from ..shards.format import ShardSample
from ..shards.writing import shard_path, write_index, write_shard
from .conversations import OPEN_SHARE, STILL, frame_account, image_caption_turn, question_turns, video_caption_turn
from .families import FAMILIES, Question, drawn_family
from .render import encode, picture
from .scenes import Scene, SceneMaker, Split, of_split

SAMPLES = {"pretrain": 4000, "vision": 6000, "language_image": 2000, "language_video": 8000}
"""Samples per dataset at scale 1."""
QUESTIONS = 24
"""Held-out questions per family and split at scale 1."""
PER_SHARD = 250
HELDOUT: Mapping[str, Split] = MappingProxyType({"heldout": "test", "validation": "validation"})
"""By folder."""
TURNS = 6
CAPTION_SHARE = 0.4
"""Of the conversations about videos: with a caption at the end, which says more of a video than all answers do."""


class BlocksTask(NamedTuple):
    """One shard, to be written by any process: a pure function of its fields."""

    folder: Path
    dataset: str
    number: int
    samples: int  # or questions per family
    seed: int


def build(folder: str | Path, *, seed: int = 0, scale: float = 1.0, workers: int | None = None) -> dict[str, int]:
    """Writes all of Blocks world below `folder` and returns the number of samples per dataset.

    The same seed and scale give the same bytes; what stood there is replaced.
    """
    if not 0 < scale <= 1000:
        raise AuroraError(f"scale {scale} is outside (0, 1000]; 1 makes {sum(SAMPLES.values())} training samples")
    folder = Path(folder)
    counts = {dataset: max(PER_SHARD // 10, round(count * scale)) for dataset, count in SAMPLES.items()}
    tasks = [BlocksTask(folder, dataset, number, min(PER_SHARD, count - number * PER_SHARD), seed)
             for dataset, count in counts.items() for number in range(-(-count // PER_SHARD))]
    questions = max(1, round(QUESTIONS * scale))
    for dataset in counts:
        shutil.rmtree(folder / dataset, ignore_errors=True)
        (folder / dataset).mkdir(parents=True)
    tasks = [*(BlocksTask(folder, name, 0, questions, seed) for name in HELDOUT), *tasks]
    for _ in ProcessExecutor(workers=workers).run(write_task, tasks):
        pass
    for dataset in counts:
        write_index(folder / dataset)
    return {**counts, **dict.fromkeys(HELDOUT, questions * len(FAMILIES))}


def write_task(task: BlocksTask) -> None:
    """Writes one shard, or the questions of a held-out split."""
    if task.dataset in HELDOUT:
        write_heldout(task.folder / task.dataset, task.samples, task.seed, HELDOUT[task.dataset])
        return
    start = task.number * PER_SHARD
    make = DATASETS[task.dataset]
    samples = (make(f"{index:07d}", random.Random(f"{task.seed}/{task.dataset}/{index}"))
               for index in range(start, start + task.samples))
    write_shard(samples, shard_path(task.folder / task.dataset, task.number))


def caption_sample(key: str, rng: random.Random) -> ShardSample:
    """An image and its caption, as in the pretrain stage."""
    scene = _still(rng)
    return _picture(key, scene, [image_caption_turn(scene)])


def short_answer_sample(key: str, rng: random.Random) -> ShardSample:
    """An image and questions that a word answers, as in the vision stage; some with a caption."""
    scene, turns = _asked(rng, _still, open_share=1.0)
    return _picture(key, scene, [*turns, image_caption_turn(scene)] if rng.random() < 0.3 else turns)


def image_sample(key: str, rng: random.Random) -> ShardSample:
    """An image and a conversation, as in the first part of the language stage."""
    if rng.random() < 0.2:
        return caption_sample(key, rng)
    scene, turns = _asked(rng, _still)
    return _picture(key, scene, turns)


def video_sample(key: str, rng: random.Random) -> ShardSample:
    """A video and a conversation; a few samples hold several images, and a few text alone."""
    kind, family = rng.random(), drawn_family(rng)
    if kind < 0.08:
        scene = _acted(rng, family)
        return _sample(key, [video_caption_turn(scene)], "video", {"mp4": encode(scene)})
    scene, turns = _asked(rng, lambda rng: _acted(rng, family), family)
    if rng.random() < CAPTION_SHARE:
        turns.append(video_caption_turn(scene))
    seconds = range(int(scene.duration))
    if kind < 0.12:
        return _sample(key, turns, "image", {f"{second}.png": picture(scene, float(second)) for second in seconds})
    if kind < 0.15:
        account = "\n".join(frame_account(scene, float(second)) for second in seconds)
        return _sample(key, [Turn(f"{account}\n{turns[0].question}", turns[0].answer), *turns[1:]])
    return _sample(key, turns, "video", {"mp4": encode(scene)})


DATASETS: dict[str, Callable[[str, random.Random], ShardSample]] = {
    "pretrain": caption_sample,
    "vision": short_answer_sample,
    "language_image": image_sample,
    "language_video": video_sample,
}


def write_heldout(folder: Path, per_family: int, seed: int, split: Split = "test") -> None:
    """Writes the questions of a held-out split, so many per family, each with a video of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "videos").mkdir(parents=True)
    lines = []
    for family in FAMILIES:
        for index in range(per_family):
            rng = random.Random(f"{seed}/{split}/{family}/{index}")
            scene, question = heldout_question(family, rng, split)
            options = question.options(rng)
            name = f"{family}_{index:03d}"
            (folder / "videos" / f"{name}.mp4").write_bytes(encode(scene))
            lines.append({"id": name, "video": f"videos/{name}.mp4", "family": family, "question": question.text,
                          "options": options, "answer": options.index(question.answer),
                          "caption": video_caption_turn(scene).answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def heldout_question(family: str, rng: random.Random, split: Split = "test") -> tuple[Scene, Question]:
    """A scene of a combination that training never shows, and a question about it."""
    while True:
        scene = _acted(rng, family, split)
        question = FAMILIES[family].ask(scene, rng)
        if question is not None:
            return scene, question


def _acted(rng: random.Random, family: str, split: Split = "train") -> Scene:
    return of_split(split, lambda: FAMILIES[family].make(SceneMaker(rng)))


def _still(rng: random.Random) -> Scene:
    return of_split("train", lambda: SceneMaker(rng).plain(rng.randint(1, 4)))


def _asked(rng: random.Random, make: Callable[[random.Random], Scene], family: str | None = None, *,
           open_share: float = OPEN_SHARE) -> tuple[Scene, list[Turn]]:
    """A scene about which at least one question can be asked, and such questions."""
    families = STILL if family is None else ()
    while True:
        scene = make(rng)
        turns = question_turns(scene, rng, TURNS, families=families, first=family, open_share=open_share)
        if turns:
            return scene, turns


def _picture(key: str, scene: Scene, turns: list[Turn]) -> ShardSample:
    return _sample(key, turns, "image", {"png": picture(scene, 0.0)})


def _sample(key: str, turns: list[Turn], kind: str = "", media: Mapping[str, bytes] = MappingProxyType({})
            ) -> ShardSample:
    """A sample of text alone, or whose media are an "image" or several, or a "video"."""
    said = [{"from": speaker, "value": text or ""} for turn in turns
            for speaker, text in (("human", turn.question), ("gpt", turn.answer))]
    if kind:
        said[0]["value"] = f"<{kind}>" * len(media) + "\n" + said[0]["value"]
    named = {kind: list(media) if len(media) > 1 else next(iter(media))} if kind else {}
    return ShardSample(key, {"id": key, "conversations": said, **named}, media)
