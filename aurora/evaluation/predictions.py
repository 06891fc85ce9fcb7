"""What is asked and what was answered, on disk: one line per item, written as answers are made, so that a stopped
evaluation goes on, and several processes answer a part each."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aurora.config import differences
from aurora.errors import AuroraError
from aurora.files import replace_file
from aurora.interfaces import Item

ITEMS_FILE = "items.jsonl"
PREDICTIONS_FILE = "predictions.jsonl"
_SHARD = re.compile(r"predictions-(\d+)-of-(\d+)\.jsonl")


class Shard(NamedTuple):
    """The part of the videos that one process asks about."""

    rank: int = 0
    world: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Of "0/4". AuroraError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or int(match[1]) >= int(match[2]):
            raise AuroraError(f"the shard {text!r} must be RANK/WORLD with a rank from 0, such as 0/4 … 3/4")
        return cls(int(match[1]), int(match[2]))

    @property
    def file(self) -> str:
        """The name of its file of predictions."""
        return PREDICTIONS_FILE if self.world == 1 else f"predictions-{self.rank}-of-{self.world}.jsonl"


@dataclass(frozen=True)
class Prediction:
    """What was answered to an item, or why nothing could be."""

    id: str
    answer: str
    failure: str | None = None
    log_probs: Sequence[float] | None = None  # of the options, where likelihood chose among them
    behind_end: float | None = None  # seconds between the end of the video and the moment it was asked about


class PredictionFile:
    """The predictions of one process: the first line says how they were made, and no other run may add to it, or to
    the folder of a whole run."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self.done: dict[str, Prediction] = {}
        begun = _line({"settings": settings})
        raw = b"" if restart or not path.exists() else path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a killed run may have left half a line
        merged = path.with_name(PREDICTIONS_FILE)
        if whole or (merged.exists() and not path.exists() and not restart):
            before = path if whole else merged
            made_with, found = read_predictions(before)
            if changed := differences(made_with, json.loads(begun)["settings"]):
                raise AuroraError(f"{before} was made with other settings ({'; '.join(changed)}); choose another "
                                  "output folder, or start again with --restart")
        if whole:
            # What failed is tried again: the missing file may be there now.
            self.done = {prediction.id: prediction for prediction in found if prediction.failure is None}
        if not whole or len(whole) < len(raw):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, whole or begun.encode())

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Appends lines; they are in the file when this returns. The last one of an id counts."""
        made = list(predictions)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_line(asdict(prediction)) for prediction in made))
        self.done.update({prediction.id: prediction for prediction in made})


def read_predictions(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """The settings of a file and its whole lines. AuroraError if it is something else."""
    first, *lines = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
    try:
        return json.loads(first)["settings"], [Prediction(**json.loads(line)) for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise AuroraError(f"{path} is not a file of predictions ({error}); choose another output folder, or start "
                          "again with --restart") from error


def write_predictions(path: Path, settings: Mapping[str, Any], predictions: Iterable[Prediction]) -> None:
    """Writes a whole file at once."""
    replace_file(path, "".join([_line({"settings": settings}), *(_line(asdict(one)) for one in predictions)]).encode())


class Shards(NamedTuple):
    """What the processes of one run have written so far."""

    settings: dict[str, Any]
    predictions: dict[str, Prediction]
    world: int
    missing: list[int]  # ranks that have written nothing


def read_shards(folder: Path, world: int | None = None) -> Shards:
    """The predictions of all processes of a run of `world` processes, or of the only run that is there. AuroraError
    without any, or when they are of different runs."""
    found = {(int(match[2]), int(match[1])): path for path in sorted(folder.glob("predictions-*.jsonl"))
             if (match := _SHARD.fullmatch(path.name)) and world in (None, int(match[2]))}
    worlds = sorted({world for world, _ in found})
    if len(worlds) != 1:
        raise AuroraError(f"{folder} holds predictions of {' and of '.join(map(str, worlds)) or 'no'} processes; "
                          "--merge needs predictions-RANK-of-WORLD.jsonl of one run")
    settings: dict[str, Any] | None = None
    predictions: dict[str, Prediction] = {}
    for path in found.values():
        made_with, lines = read_predictions(path)
        if settings is not None and (changed := differences(settings, made_with)):
            raise AuroraError(f"{path} was made with other settings than the rest ({'; '.join(changed)})")
        settings = made_with
        predictions.update({line.id: line for line in lines})
    return Shards(settings or {}, predictions, worlds[0],
                  [rank for rank in range(worlds[0]) if (worlds[0], rank) not in found])


def write_items(folder: Path, items: Sequence[Item], about: Mapping[str, Any]) -> None:
    """Writes what is asked: a line about all of it, then one per item; `read_items` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / ITEMS_FILE, "".join([_line({"about": about}), *(_line(asdict(item)) for item in items)]
                                              ).encode())


def read_items(folder: Path) -> tuple[dict[str, Any], list[Item]]:
    """What `write_items` wrote. AuroraError if it is not there, or is something else."""
    path = folder / ITEMS_FILE
    try:
        first, *lines = path.read_bytes().rstrip(b"\n").split(b"\n")
        return json.loads(first)["about"], [_item(json.loads(line)) for line in lines]
    except FileNotFoundError as error:
        raise AuroraError(f"{folder} holds no {ITEMS_FILE}; give the output folder of `aurora eval`") from error
    except (KeyError, TypeError, ValueError) as error:
        raise AuroraError(f"{path} is not what `aurora eval` wrote ({error})") from error


def read_answers(folder: Path, result: Mapping[str, Any]) -> tuple[list[Item], dict[str, str | None]]:
    """The items of a result and the answers that made it, by id; None for what could not be asked.

    AuroraError where the files are of another run, or were written to since the result.
    """
    about, items = read_items(folder)
    settings, lines = read_predictions(folder / PREDICTIONS_FILE)
    made = {one.id: one for one in lines}
    changed = [key for key in settings if settings[key] != result.get(key)]
    waiting = [item.id for item in items if item.id not in made]
    if of_other_items(about, result):
        problem = f"{ITEMS_FILE} holds other items than the result"
    elif changed:
        problem = f"{PREDICTIONS_FILE} holds another {changed[0]} than the result"
    elif waiting:
        problem = f"{PREDICTIONS_FILE} holds no prediction of {waiting[0]!r}"
    elif result.get("predictions") not in (None, digest(made[item.id] for item in items)):
        problem = "the predictions are newer than the result"
    else:
        return items, {id: one.answer if one.failure is None else None for id, one in made.items()}
    raise AuroraError(f"{folder}: {problem}; run `aurora eval` to its end first")


def of_other_items(about: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether the first line of `read_items` belongs to other items than a result, or the settings of predictions."""
    return any(about[key] != result[key] for key in ("questions", "limit") if key in about and key in result)


def digest(items: Iterable[Item | Prediction]) -> str:
    """SHA-256 over all that is asked, or answered."""
    lines = hashlib.sha256()
    for item in items:
        lines.update(_line(asdict(item)).encode())
    return lines.hexdigest()


def _item(line: Mapping[str, Any]) -> Item:
    return Item(**{**line, "options": tuple(line["options"])})


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
