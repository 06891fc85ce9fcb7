"""One point of an efficiency curve: what a process measures, the memory it may take, and its stopwatch."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

STAGES = ("decode", "vision", "connector", "prefill", "first token", "per token")
QUESTION = "What happens in the video?"
OURS = "aurora"
BASELINES = {"transformer sdpa": "sdpa", "transformer eager": "eager"}
"""Series of the baseline, with the attention of `transformers` that each computes."""


@dataclass(frozen=True)
class Point:
    """What one process measures. All of it can be written as JSON."""

    series: str  # OURS, or one of BASELINES
    frames: int
    video: str  # read again and again until there are so many frames
    model: str | None = None  # a folder; None: the config of `overrides` with random weights
    model_hash: str | None = None  # of the folder, whose files may be replaced
    overrides: list[str] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)  # options of the backbone `transformer`
    baseline_tokens: int = 256  # of a frame
    new_tokens: int = 16
    device: str = "cpu"
    threads: int | None = None
    limit_bytes: int | None = None  # memory that the process may take
    stream_seconds: float | None = None  # measures whether a live video keeps up, for so long, in place of the stages


class Meter:
    """Adds up seconds and keeps the peak of memory for every stage; None where the system shows no peak."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int | None] = {}
        self.rest_bytes = self.held()

    def held(self) -> int | None:
        """Bytes that are held now: tensors on a GPU, else the resident memory of this process."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status("VmRSS")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done inside counts for the stage."""
        sees_peak, started = self._reset(), time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        peak = self._peak() if sees_peak else None
        self.peaks[name] = None if peak is None else max(peak, self.peaks.get(name) or 0)

    def _reset(self) -> bool:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def _peak(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status("VmHWM")


def limit_memory(point: Point) -> None:
    """Lets allocations fail above the limit, so that a point that does not fit ends by itself and harms nobody."""
    if point.limit_bytes is None:
        return
    device = torch.device(point.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, point.limit_bytes / total), device)
    elif sys.platform == "linux":
        import resource

        # RLIMIT_DATA counts private memory that can be written; files that are only mapped do not count
        resource.setrlimit(resource.RLIMIT_DATA, (point.limit_bytes, point.limit_bytes))


def _status(name: str) -> int | None:
    """A size of this process in bytes, as Linux says it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "bad allocation", "bad_alloc",
                  "failed to map segment")  # the last where a library is loaded


def does_not_fit(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU allocator of torch has no class for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError, ImportError)) and says_out_of_memory(str(error)))


def says_out_of_memory(text: str) -> bool:
    """Whether a message is about memory that ran out, in the words of torch, C++ or the system."""
    return any(words in text for words in _OUT_OF_MEMORY)
