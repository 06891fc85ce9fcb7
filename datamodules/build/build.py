"""Building shards of a dataset: a plan, one task per shard that anybody may do, and the join of what they wrote.

Beside its tar, index and manifest every task leaves `.build/000000.skipped.jsonl`: the entries that could not be used.
The same files give the same bytes, whoever does the tasks and however often they were cut off.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from aurora.errors import AuroraError, BadSample
from aurora.files import replace_file
from aurora.interfaces import Executor, Prompt, Tokenizer
from aurora.interfaces.data import ShellTask
from aurora.registry import PROMPT, TOKENIZER

from ..plan.lengths import counter, text_length, text_lengths, write_lengths
from ..shards.format import ShardSample
from ..shards.index import shard_arrays
from ..shards.writing import done_manifest, shard_path, write_index, write_shard
from .media import stored
from .plan import BuildPlan, build_folder, load_plan, read_task

SKIPPED = "skipped.jsonl"
DATASET = "dataset.json"


@dataclass(frozen=True)
class TextCounter:
    """What texts are counted with while shards are built, as configs of the parts."""

    tokenizer: Mapping[str, Any]
    prompt: Mapping[str, Any]

    def parts(self) -> tuple[Prompt, Tokenizer]:
        """Built once per process."""
        return _parts(json.dumps([self.prompt, self.tokenizer], sort_keys=True))


@dataclass(frozen=True)
class BuildTask(ShellTask):
    """One shard of a planned build."""

    output: Path
    number: int
    count: TextCounter | None = None

    def command(self) -> Sequence[str]:
        counting = [] if self.count is None else ["--count", json.dumps(self.count.tokenizer),
                                                  json.dumps(self.count.prompt)]
        return ["shards", "work", str(self.output.resolve()), "--task", str(self.number), *counting]

    def result(self) -> dict[str, Any] | None:
        manifest = done_manifest(self.tar)
        try:
            skipped = self.skipped.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return None
        if manifest is None:
            return None
        reasons = Counter(json.loads(line)["reason"] for line in skipped)
        return {**manifest, "entries": manifest["samples"] + len(skipped), "skipped": dict(sorted(reasons.items()))}

    @property
    def tar(self) -> Path:
        return shard_path(self.output, self.number)

    @property
    def skipped(self) -> Path:
        """The list of the entries that could not be used; there when the task is done."""
        return build_folder(self.output) / f"{self.number:06d}.{SKIPPED}"


def build_tasks(output: Path, plan: BuildPlan, count: TextCounter | None = None) -> list[BuildTask]:
    """The tasks of a plan."""
    return [BuildTask(output, number, count) for number in range(plan.tasks)]


def write_task(task: BuildTask) -> dict[str, Any]:
    """Writes a shard, unless it is there, and returns its manifest with its "entries" and what was "skipped"."""
    done = task.result()
    if done is not None:
        return done
    tasks = load_plan(task.output).tasks
    if not 0 <= task.number < tasks:
        raise AuroraError(f"{task.output} has no task {task.number}; they are 0 to {tasks - 1}")
    skipped: list[dict[str, Any]] = []

    def skip(number: int, name: Any, error: BadSample) -> None:
        skipped.append({"shard": task.number, "entry": number, "id": name, "reason": error.reason,
                        "detail": error.detail})

    task.skipped.unlink(missing_ok=True)
    manifest = write_shard(_samples(task, skip), task.tar,
                           skip=lambda sample, error: skip(int(sample.key), sample.record.get("id"), error))
    if task.count is not None:
        prompt, tokenizer = task.count.parts()
        with task.tar.open("rb") as file:
            lengths = [text_length(os.pread(file.fileno(), *place), prompt, tokenizer)
                       for place in shard_arrays(task.tar)[0][["size", "offset"]].tolist()]
        write_lengths(task.tar, manifest["sha256"], counter(prompt, tokenizer), np.array(lengths, np.int32))
    replace_file(task.skipped, "".join(json.dumps(one) + "\n" for one in skipped).encode())
    result = task.result()
    assert result is not None
    return result


def run_tasks(
    tasks: Sequence[BuildTask], executor: Executor, *, entries: int, max_bad_rate: float
) -> Iterator[dict[str, Any]]:
    """What every task gave, first those that were done before. AuroraError once more than `max_bad_rate` of the entries
    could not be used; what was written stays."""
    results = [task.result() for task in tasks]
    left = [task for task, result in zip(tasks, results, strict=True) if result is None]
    bad: Counter[str] = Counter()
    for row in chain(filter(None, results), executor.run(write_task, left)):
        yield row
        bad.update(row["skipped"])
        if bad.total() > max_bad_rate * entries:
            output = tasks[0].output
            write_skipped(output, tasks)
            reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
            with (output / SKIPPED).open(encoding="utf-8") as file:
                first = json.loads(next(file))["detail"]
            raise AuroraError(
                f"{bad.total()} of {entries} entries cannot be used ({reasons}), more than --max-bad-rate "
                f"{max_bad_rate}; the first: {first}; {output / SKIPPED} lists them. What was written stays: mend them "
                "and add --retry, or raise the rate")


def join(output: Path, plan: BuildPlan, count: TextCounter | None = None) -> dict[str, Any]:
    """Joins finished shards into a dataset, and returns what `dataset.json` says of it."""
    tasks = build_tasks(output, plan)
    done = {task.number: row for task in tasks if (row := task.result()) is not None}
    if len(done) < len(tasks):
        first = next(task.number for task in tasks if task.number not in done)
        raise AuroraError(f"{output}: {len(tasks) - len(done)} shards are not built yet, the first is {first:06d}")
    for partial in output.glob("*.tmp"):
        partial.unlink()
    index = write_index(output)
    if count is not None:
        text_lengths(index, *count.parts())
    write_skipped(output, tasks)
    kinds, skipped = Counter[str](), Counter[str]()
    for row in done.values():
        kinds.update(row["kinds"])
        skipped.update(row["skipped"])
    sums = {key: sum(row[key] for row in done.values())
            for key in ("bytes", "media_bytes", "text_bytes", "frames", "seconds")}
    order = plan.order
    about = {**(order.about or {}), "source": dict(order.source),
             "transcode": None if order.transcode is None else vars(order.transcode),
             "shards": plan.tasks, "entries": plan.entries, "samples": len(index), "kinds": dict(kinds), **sums,
             "seconds": round(sums["seconds"], 3), "skipped": dict(skipped.most_common()), "broken": plan.broken,
             "digest": index.digest}
    replace_file(output / DATASET, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    return about


def retry_skipped(tasks: Sequence[BuildTask]) -> int:
    """Forgets the shards that left entries out, so that they are built again, and returns their number."""
    again = [task for task in tasks if (done := task.result()) is not None and done["skipped"]]
    for task in again:
        task.skipped.unlink()
    return len(again)


def clear(output: Path) -> None:
    """Throws away what a build wrote into a folder, and nothing else."""
    shutil.rmtree(build_folder(output), ignore_errors=True)
    written = "[0-9]*.tar", "*.tmp", "[0-9]*.manifest.json", "[0-9]*.npz", "index.*", "lengths-*", DATASET, SKIPPED
    for path in chain.from_iterable(map(output.glob, written)):
        path.unlink()


def write_skipped(output: Path, tasks: Sequence[BuildTask]) -> None:
    """Joins the lists of what could not be used."""
    lists = (task.skipped.read_bytes() for task in tasks if task.skipped.is_file())
    replace_file(output / SKIPPED, b"".join(lists))


def _samples(task: BuildTask, skip: Callable[[int, Any, BadSample], None]) -> Iterator[ShardSample]:
    order = load_plan(task.output).order
    source = order.build_source()
    for number, entry in read_task(task.output, task.number):
        try:
            yield stored(source.sample(entry, f"{number:09d}"), order.transcode)
        except BadSample as error:
            skip(number, entry.get("id"), error)


@lru_cache(maxsize=1)
def _parts(configs: str) -> tuple[Prompt, Tokenizer]:
    prompt, tokenizer = json.loads(configs)
    return PROMPT.build(prompt), TOKENIZER.build(tokenizer)
