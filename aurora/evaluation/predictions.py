"""Predictions on disk: one line per answer, written as they are made, so that a stopped evaluation goes on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from aurora.config import differences
from aurora.errors import AuroraError

PREDICTIONS_FILE = "predictions.jsonl"

Shown = Literal["own", "wrong"]


@dataclass(frozen=True)
class Task:
    """A question and the video it is asked about: its own, or a wrong one."""

    id: str
    shown: Shown
    video: str


@dataclass(frozen=True)
class Prediction(Task):
    """What was answered, or why nothing could be."""

    answer: str
    failure: str | None = None
    log_probs: Sequence[float] | None = None  # of the options, where likelihood chose among them

    @property
    def task(self) -> Task:
        """What was asked."""
        return Task(self.id, self.shown, self.video)


class PredictionFile:
    """The predictions of one run: its first line says how they were made, and no other run may add to it."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self.done: dict[Task, Prediction] = {}
        begun = json.dumps({"settings": settings}, ensure_ascii=False)
        raw = b"" if restart or not path.exists() else path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a killed run may have left half a line
        if whole:
            made_with, found = read_predictions(path)
            if changed := differences(made_with, json.loads(begun)["settings"]):
                raise AuroraError(f"{path} was made with other settings ({'; '.join(changed)}); choose another output "
                                  "folder, or start again with --restart")
            # What failed is tried again: the missing file may be there now.
            self.done = {prediction.task: prediction for prediction in found if prediction.failure is None}
        if not whole or len(whole) < len(raw):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole or f"{begun}\n".encode())

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Appends lines; they are on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
                self.done[prediction.task] = prediction


def read_predictions(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """The settings of a file and its whole lines. AuroraError if it is something else."""
    first, *lines = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
    try:
        return json.loads(first)["settings"], [Prediction(**json.loads(line)) for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise AuroraError(f"{path} is not a file of predictions ({error}); choose another output folder, or start "
                          "again with --restart") from error
