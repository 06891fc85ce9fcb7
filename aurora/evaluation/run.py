"""Asks a model every question of a folder, about its own video and about a wrong one, and writes what came out."""

import hashlib
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.evaluation.predictions import PREDICTIONS_FILE, Prediction, PredictionFile, Task
from aurora.evaluation.questions import QUESTIONS_FILE, Question, read_questions, spread, wrong_videos
from aurora.evaluation.scoring import likeliest
from aurora.evaluation.summary import summarise
from aurora.files import write_json
from aurora.inference.generation import Generation, complete
from aurora.inference.reading import fork
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import UnreadableVisual
from aurora.model import AuroraModel
from aurora.version import VERSION

RESULT_FILE = "result.json"
Score = Literal["text", "likelihood", "likelihood_per_token"]


@dataclass(frozen=True)
class Protocol:
    """What is asked and how: it is written into every result, and a run with another one does not resume it."""

    score: Score = "text"  # of choices: what the model writes, or which option is likeliest as its answer
    choice: Generation = field(default_factory=lambda: Generation(max_new_tokens=16))
    open: Generation = field(default_factory=lambda: Generation(max_new_tokens=128))
    wrong_videos: bool = True
    seed: int = 0  # of the choice of wrong videos


def evaluate(
    model: AuroraModel,
    config: ModelConfig,
    folder: str | Path,
    *,
    output: str | Path,
    protocol: Protocol | None = None,
    model_hash: str | None = None,
    limit: int | None = None,
    parallel: int = 32,
    restart: bool = False,
    on_progress: Callable[[int, int], None] = lambda answered, all: None,
) -> dict[str, Any]:
    """The result, which is also written to `output` beside the predictions; a stopped run goes on where it was.

    `limit` asks that many questions only, spread over the file; `parallel` questions about a video are read together.
    """
    start = time.monotonic()
    protocol = protocol or Protocol()
    questions, tasks = _plan(Path(folder), protocol, limit)
    settings = _settings(config, folder, protocol, model_hash)
    file = PredictionFile(Path(output) / PREDICTIONS_FILE, settings, restart=restart)
    watcher = VideoModel(model, config)
    pending = [task for task in tasks if task not in file.done]
    answered = len(tasks) - len(pending)
    for together in _by_video(pending, parallel):
        file.add(_predict(watcher, Path(folder), together, questions, protocol))
        answered += len(together)
        on_progress(answered, len(tasks))
    predictions = {task: file.done[task] for task in tasks}
    failures = [prediction.failure for prediction in predictions.values()]
    if all(failure is not None for failure in failures):
        raise AuroraError(f"no video could be read, so there is no result; the first reason: {failures[0]}")
    result = {**summarise(list(questions.values()), predictions), **settings, "limit": limit,
              "versions": {"python": platform.python_version(), "aurora": VERSION,
                           **{package: version(package) for package in ("torch", "av", "transformers")}},
              "seconds": round(time.monotonic() - start, 2)}
    write_json(Path(output) / RESULT_FILE, result)
    return result


def _plan(folder: Path, protocol: Protocol, limit: int | None) -> tuple[dict[str, Question], list[Task]]:
    everything = read_questions(folder)
    if limit is not None and limit < 1:
        raise AuroraError(f"limit {limit} leaves no question; give 1 or more")
    chosen = spread(everything, limit or len(everything))
    others = wrong_videos(everything, protocol.seed) if protocol.wrong_videos else {}
    tasks = [Task(question.id, "own", question.video) for question in chosen]
    tasks += [Task(question.id, "wrong", others[question.id]) for question in chosen if question.id in others]
    return {question.id: question for question in chosen}, tasks


def _by_video(tasks: Sequence[Task], most: int) -> Iterator[list[Task]]:
    """Tasks about the same video, up to `most` of them together: it is decoded and encoded once for all."""
    videos: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        videos[task.video].append(task)
    for group in videos.values():
        for first in range(0, len(group), most):
            yield group[first : first + most]


def _predict(model: VideoModel, folder: Path, tasks: Sequence[Task], questions: Mapping[str, Question],
             protocol: Protocol) -> list[Prediction]:
    asked = [questions[task.id] for task in tasks]
    try:
        film = model.watch(folder / tasks[0].video, prompt=model.config.prompt)
        memory = film.read_all([question.prompt for question in asked])
    except UnreadableVisual as error:
        return [Prediction(**vars(task), answer="", failure=str(error)) for task in tasks]
    made: dict[int, Prediction] = {}
    written: dict[bool, list[int]] = {True: [], False: []}  # by whether there are options
    for place, question in enumerate(asked):
        if question.options and protocol.score != "text":
            best, values = likeliest(model.model, model.runner, fork(memory, [place]), question.options,
                                     per_token=protocol.score == "likelihood_per_token")
            made[place] = Prediction(**vars(tasks[place]), answer=question.options[best], log_probs=values)
        else:
            written[bool(question.options)].append(place)
    for choice, places in written.items():
        how = protocol.choice if choice else protocol.open
        said = complete(model.model, model.runner, fork(memory, places), how) if places else []
        for place, answer in zip(places, said, strict=True):
            made[place] = Prediction(**vars(tasks[place]), answer=answer.strip())
    return [made[place] for place in range(len(tasks))]


def _settings(config: ModelConfig, folder: str | Path, protocol: Protocol, model_hash: str | None
              ) -> dict[str, Any]:
    questions = (Path(folder) / QUESTIONS_FILE).read_bytes()
    used = ("keep_ratio", "sampling", "prompt", "merge", "sort", "reader", "dtype", "quantize")
    return {"model": model_hash, "questions": hashlib.sha256(questions).hexdigest(),
            **{key: config.tree[key] for key in used}, "protocol": asdict(protocol)}
