"""What a build is: the order for it, and its entries cut into shards, the same for whoever does the work.

    OUTPUT/.build/plan.json       the order, what the annotations were, how many tasks and entries there are
                  000000.jsonl    the entries of shard 0, each with its number: [number, entry]
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError
from aurora.files import replace_file, room_for
from aurora.interfaces import Entry, Source
from aurora.records import RecordsBroken
from aurora.registry import SOURCE

from ..shards.writing import Cut
from .media import Transcode

_VERSION = 1
_TICK = 1000
Tick = Callable[[int], None]


@dataclass(frozen=True)
class BuildOrder:
    """What is to be built of what."""

    folder: str  # the dataset's own, absolute
    source: Mapping[str, Any]  # name and options of the source part
    samples_per_shard: int = 5000
    shard_bytes: int = 1 << 30
    transcode: Transcode | None = None
    about: Mapping[str, Any] | None = None  # name, title, homepage and licence of the dataset; decides no byte of them

    def build_source(self) -> Source:
        """The part that lists the entries."""
        return SOURCE.build(self.source, folder=Path(self.folder))


@dataclass(frozen=True)
class BuildPlan:
    """An order whose entries were counted and cut."""

    order: BuildOrder
    tasks: int
    entries: int
    broken: str | None  # why the annotations could not be read to their end


def build_folder(output: Path) -> Path:
    """Where the plan of a build lies."""
    return output / ".build"


def make_plan(order: BuildOrder, output: Path, tick: Tick = lambda entries: None) -> BuildPlan:
    """Writes the tasks, or finds that this was done. AuroraError when `output` is of another order."""
    source = order.build_source()
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in source.annotations()]
    plain = json.loads(json.dumps(asdict(order)))
    about = plain.pop("about")  # which decides no byte
    made_of = {"version": _VERSION, "order": plain, "annotations": stamps}
    kept = _read(output)
    if kept is None:
        if any(output.glob("*.tar")):
            raise AuroraError(f"{output} holds shards that were not built here; give another folder, or --restart to "
                              "throw them away")
        shutil.rmtree(build_folder(output), ignore_errors=True)
        with room_for(build_folder(output)):
            build_folder(output).mkdir(parents=True)
            tasks, entries, broken = _write_tasks(source, order, output, tick)
        kept = {"made_of": made_of, "tasks": tasks, "entries": entries, "broken": broken}
    elif kept["made_of"] != made_of:
        then, now = ({**made, **made["order"]} for made in (kept["made_of"], made_of))
        changed = [key for key in now if key != "order" and then.get(key) != now[key]]
        differences = "; ".join(f"{key} was {then.get(key)!r}, is {now[key]!r}" for key in changed)
        raise AuroraError(f"{output} was begun from something else: {differences}. Build into another folder, or "
                          "--restart to throw away what is there")
    replace_file(build_folder(output) / "plan.json", json.dumps({**kept, "about": about}, indent=1).encode())
    return load_plan(output)


def load_plan(output: Path) -> BuildPlan:
    """The plan of a folder. AuroraError when there is none."""
    kept = _read(output)
    if kept is None:
        raise AuroraError(f"{output} holds no plan of shards; `aurora shards build` makes it")
    order = dict(kept["made_of"]["order"])
    transcode = order.pop("transcode")
    media = None if transcode is None else Transcode(**transcode)
    return BuildPlan(BuildOrder(transcode=media, about=kept["about"], **order), kept["tasks"], kept["entries"],
                     kept["broken"])


def read_task(output: Path, number: int) -> Iterator[tuple[int, Entry]]:
    """The entries of a task, with the number that each has in the dataset."""
    path = build_folder(output) / f"{number:06d}.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                at, entry = json.loads(line)
                yield at, entry
    except FileNotFoundError:
        raise AuroraError(f"{output} has no task {number}") from None


def _write_tasks(source: Source, order: BuildOrder, output: Path, tick: Tick) -> tuple[int, int, str | None]:
    """Number of tasks and entries, and why not all annotations could be read."""
    cut = Cut(order.samples_per_shard, order.shard_bytes)
    tasks, entries, broken = 0, 0, None
    numbered = enumerate(source.entries())
    try:
        for task, group in itertools.groupby(numbered, key=lambda one: cut(source.size(one[1]))):
            tasks = task + 1
            with build_folder(output).joinpath(f"{task:06d}.jsonl").open("w", encoding="utf-8") as file:
                for number, entry in group:
                    file.write(json.dumps([number, entry], ensure_ascii=True, default=str) + "\n")
                    entries += 1
                    if not entries % _TICK:
                        tick(entries)
    except RecordsBroken as error:
        broken = str(error)
    if not entries:
        raise AuroraError(broken or f"{order.folder}: the annotations hold no entry")
    return tasks, entries, broken


def _read(output: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        return dict(json.loads(build_folder(output).joinpath("plan.json").read_bytes()))
    return None
