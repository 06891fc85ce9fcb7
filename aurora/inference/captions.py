"""One request to very many videos: every input shard gives one file of answers, written as a whole, once.

An input shard is a WebDataset tar, or a part of a list of videos. `OUTPUT/.done/NAME.json` says what the file of a
shard was made of; it is written after the file, so a shard that was cut off is done again.
"""

import json
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from aurora.config import differences
from aurora.errors import AuroraError
from aurora.files import claimed, read_json, remove, replace_file, replacing, room_for
from aurora.inference.film import Film
from aurora.inference.generation import Generation
from aurora.inference.video_lists import Entry, InputShard, of_tar
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import UnreadableVisual
from aurora.inference.workers import WorkerModel
from aurora.version import VERSION

DONE = ".done"
SETTINGS = "settings.json"
Format = Literal["jsonl", "parquet"]


@dataclass(frozen=True)
class Request:
    """What is asked about every video that brings no question of its own, and how the answers are written."""

    question: str
    options: Generation
    format: Format
    batch: int  # films that are answered in one forward pass


class Outcome(NamedTuple):
    """What became of an input shard."""

    name: str
    status: Literal["written", "present", "busy", "broken"]
    answers: int = 0
    failures: Sequence[tuple[str, str]] = ()  # the video of a row without an answer, and why
    seconds: float = 0.0  # of video
    elapsed: float = 0.0
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether an answer is missing."""
        return bool(self.failures) or self.status == "broken"


@dataclass(frozen=True)
class CaptionTask:
    """One input shard to be answered into a folder."""

    shard: InputShard
    output: str
    model: WorkerModel
    request: Request
    wait: bool = False  # for another process that is at it

    @property
    def name(self) -> str:
        """The name of the input shard."""
        return self.shard.name

    @property
    def path(self) -> Path:
        """The file of the answers."""
        return Path(self.output) / f"{self.name}.{self.request.format}"

    @property
    def done(self) -> Path:
        """The file that says that they are whole."""
        return Path(self.output) / DONE / f"{self.name}.json"

    def result(self) -> Outcome | None:
        """What was written before, of the same input; None where it has to be done."""
        with suppress(AuroraError, OSError, KeyError, ValueError):
            kept = read_json(self.done)
            failures = [(video, why) for video, why in kept["failures"]]
            if kept["input"] == self.shard.digest() and self.path.stat().st_size == kept["bytes"]:
                return Outcome(self.name, "present", kept["answers"], failures, kept["seconds"])
        return None


def caption_tasks(shards: Sequence[InputShard], output: Path, model: WorkerModel, request: Request, *,
                  retry: bool = False, restart: bool = False) -> list[CaptionTask]:
    """The tasks of an output folder. AuroraError when it holds answers to another request; `restart` replaces them, and
    `retry` does shards again in which something failed."""
    settings = {"question": request.question, **asdict(request.options), "format": request.format,
                "model": model.digest(), "folder": model.folder, "overrides": list(model.overrides),
                "adapter": model.adapter, "version": VERSION}
    settings = json.loads(json.dumps(settings))
    file = output / SETTINGS
    if restart:
        for done in (output / DONE).glob("*.json"):
            for form in WRITERS:
                remove(output / f"{done.stem}.{form}")
        remove(output / DONE)
    elif file.exists() and (changed := differences(read_json(file) | {"folder": ""}, settings | {"folder": ""})):
        raise AuroraError(f"{output} holds answers to another request ({'; '.join(changed)}); give another folder, or "
                          "replace them with --restart")
    (output / DONE).mkdir(parents=True, exist_ok=True)
    replace_file(file, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    tasks = [CaptionTask(shard, str(output.resolve()), model, request) for shard in shards]
    for task in tasks if retry else ():
        if (made := task.result()) is not None and made.failed:
            task.done.unlink()
    return tasks


def caption_shard(task: CaptionTask) -> Outcome:
    """Answers for all videos of an input shard, unless they are there."""
    with claimed(Path(task.output) / DONE / "claims", task.name, wait=task.wait) as free:
        if not free:
            return Outcome(task.name, "busy")
        standing = task.result()
        if standing is not None:
            return standing
        began, digest = time.monotonic(), task.shard.digest()
        try:
            rows = list(_answered(task, task.model.load()))
        except AuroraError:
            raise
        except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError: a name stands in it twice
            return Outcome(task.name, "broken", detail=f"{task.shard.tar} cannot be read to its end: {error}")
        task.done.unlink(missing_ok=True)  # it tells of the file that is replaced now
        with room_for(task.path), replacing(task.path, folder=False) as place:
            WRITERS[task.request.format](rows, place)
        failures = [(row["video"], row["failure"]) for row in rows if row["failure"] is not None]
        kept = {"input": digest, "bytes": task.path.stat().st_size, "answers": len(rows) - len(failures),
                "failures": failures, "seconds": sum(row["seconds"] for row in rows)}
        replace_file(task.done, json.dumps(kept).encode())
        return Outcome(task.name, "written", kept["answers"], failures, kept["seconds"],
                       time.monotonic() - began)


def _answered(task: CaptionTask, model: VideoModel) -> Iterator[dict[str, Any]]:
    """A row for every video, in order; as many films are held as are answered together."""
    with TemporaryDirectory(prefix="aurora-captions-") as scratch:
        entries = iter(task.shard.entries if task.shard.tar is None else of_tar(task.shard.tar, Path(scratch)))
        while seen := [(entry, _watched(model, entry)) for entry in islice(entries, task.request.batch)]:
            asked = [(film, entry.question or task.request.question) for entry, film in seen if isinstance(film, Film)]
            answers = iter(model.answer_all(asked, task.request.options))
            for entry, film in seen:
                row = {"id": entry.id, "video": entry.video, "question": entry.question or task.request.question}
                if isinstance(film, Film):
                    yield row | {"answer": str(next(answers)), "frames": film.frames,
                                 "seconds": film.seconds - entry.start, "failure": None}
                else:
                    yield row | {"answer": None, "frames": 0, "seconds": 0.0, "failure": film}


def _watched(model: VideoModel, entry: Entry) -> Film | str:
    """The film of a video, or why there is none."""
    if entry.failure is not None:
        return entry.failure
    try:
        return model.watch(entry.path, start=entry.start, stop=entry.stop)
    except UnreadableVisual as error:
        return str(error).replace(entry.path, entry.video)
    except (RuntimeError, MemoryError) as error:  # such as a GPU whose memory this one video does not fit into
        return f"{type(error).__name__}: {error}"


def write_jsonl(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as lines of JSON."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as a table of Parquet, with the same columns even where there are none."""
    from aurora.parquet import write_rows

    write_rows(path, rows, {"id": "string", "video": "string", "question": "string", "answer": "string",
                            "frames": "int64", "seconds": "double", "failure": "string"})


WRITERS = {"jsonl": write_jsonl, "parquet": write_parquet}
