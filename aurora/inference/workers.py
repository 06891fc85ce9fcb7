"""A model for tasks that run in other processes: each process loads it once, on a device of its own."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from aurora.errors import AuroraError
from aurora.files import claimed
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import file_hash

Task = TypeVar("Task", bound=Any)
"""A dataclass with `name`, and `wait`: whether it waits for another process that has claimed that name."""
Outcome = TypeVar("Outcome", bound=Any)
"""What becomes of a task of this `name`; its `status` is "busy" where another process is at it."""
_held = ExitStack()  # claims of this process, which end with it


@dataclass(frozen=True)
class WorkerModel:
    """A model folder with overrides and an adapter. Of several `devices` every process takes the first that none has
    claimed in the file `claims`."""

    folder: str
    overrides: tuple[str, ...] = ()
    adapter: str | None = None
    any_base: bool = False
    devices: tuple[str, ...] = ("cpu",)
    threads: int | None = None
    claims: str | None = None

    def load(self) -> VideoModel:
        """The model, loaded when this process first asks for it."""
        return _loaded(self)

    def digest(self) -> str:
        """SHA-256 of all files of the model and what changes it."""
        digest = hashlib.sha256(repr((self.overrides, self.any_base)).encode())
        for root in filter(None, (self.folder, self.adapter)):
            files = [path for path in sorted(Path(root).rglob("*")) if path.is_file()]
            for path in files or [Path(root)]:
                digest.update(f"{path.name} {file_hash(path)}".encode())
        return digest.hexdigest()

    def _device(self) -> str:
        if self.claims is None:
            return self.devices[0]
        for number, device in enumerate(self.devices):
            if _held.enter_context(claimed(Path(f"{self.claims}.{number}"), device)):
                return device
        raise AuroraError(f"more processes than devices ({', '.join(self.devices)})")


@lru_cache(maxsize=1)
def _loaded(model: WorkerModel) -> VideoModel:
    loaded = VideoModel.from_pretrained(Path(model.folder), overrides=model.overrides, device=model._device(),
                                        threads=model.threads, adapter=model.adapter, any_base=model.any_base)
    _ = loaded.identity  # reads all weights: once here, and not again for every film
    return loaded


def run_claimed(run: Callable[[Sequence[Task]], Iterable[Outcome]], tasks: Sequence[Task]) -> Iterator[Outcome]:
    """What becomes of every task, as it comes; those that other processes are at come last, once they are done there,
    or here if those processes end without it."""
    busy = set()
    for outcome in run(tasks):
        if outcome.status == "busy":
            busy.add(outcome.name)
        else:
            yield outcome
    if busy:
        yield from run([replace(task, wait=True) for task in tasks if task.name in busy])
