"""How fast one configuration runs on this machine: what `aurora bench` measures.

Shape letters: T packed positions, N frames, M tokens per frame.
"""

import gc
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback

from aurora.config import Config
from aurora.errors import AuroraError
from aurora.inference.reading import Memory, blank, read_texts
from aurora.inference.steps import Steps
from aurora.interfaces import DataModule, Runner
from aurora.model import AuroraModel
from aurora.training.budget import peak_flops
from aurora.training.distributed.precision import precision
from aurora.training.metrics import peak_memory
from aurora.training.stage import data_module, skeleton, training_module
from aurora.types import IGNORE, Frames, PackedBatch, Position

FEWEST_RUNS = 3
TOKENS_TOGETHER = 16  # that decoding is timed over
_ENDLESS = 10**6  # steps
ROW_TOKENS, ROW_FRAMES = 4096, 16  # of a training row, where the data config does not say


class Work(NamedTuple):
    """What is to be measured."""

    name: str
    what: str  # what one run does
    items: float  # of one run
    unit: str
    run: Callable[[], object]
    together: int = 1  # runs that are timed as one, because a single one is too short


class Measurement(NamedTuple):
    """Work that was run again and again; the first fields are those of `Work`."""

    name: str
    what: str
    items: float
    unit: str
    median: float  # seconds of a run
    low: float  # first quartile
    high: float  # third quartile
    runs: int
    peak_bytes: int | None  # held at most, weights included; None where the system does not say
    mfu: float | None = None  # share of the device's peak arithmetic; None where the peak is not known

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.median


class Stopwatch:
    """Times laps of a device: the first one warms up; those after it count until they took so many seconds, three at
    least. Measures the memory that is held from its making on."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device, self._seconds = device, seconds
        self._samples: list[float] = []
        self._last: float | None = None
        self._sees_peak = _reset_peak(device)

    def lap(self) -> bool:
        """Ends a lap. Whether there are enough of them."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._last is not None:
            self._samples.append(now - self._last)
        self._last = now
        return len(self._samples) >= FEWEST_RUNS and sum(self._samples) >= self._seconds

    def measurement(self, work: Work) -> Measurement:
        """What the laps say of work that was done in each of them."""
        low, median, high = (seconds / work.together
                             for seconds in statistics.quantiles(self._samples, n=4, method="inclusive"))
        peak = peak_memory(self._device) if self._sees_peak else None
        return Measurement(*work[:4], median, low, high, work.together * len(self._samples), peak)


def measure(work: Work, device: torch.device, seconds: float) -> Measurement:
    """Warms the work up, then runs it for so many seconds, at least three times."""
    watch, enough = Stopwatch(device, seconds), False
    while not enough:
        for _ in range(work.together):
            work.run()
        enough = watch.lap()
    return watch.measurement(work)


def vision(model: AuroraModel, keep_ratio: float, frames: int) -> Work:
    """Encoding frames [N, 3, h, w] of the size that the encoder prepares into what the language model reads."""
    size = model.vision.prepare.size
    keep = model.visual_layout(keep_ratio).tokens(size, size)
    pixels = torch.randint(256, (frames, 3, size, size), dtype=torch.uint8, device=next(model.parameters()).device)
    return Work("vision", f"encode {frames} frames of {size}×{size} to {keep} tokens each", frames, "frames",
                torch.inference_mode()(lambda: model.encode(pixels, keep)))


def prefill(model: AuroraModel, tokens: int) -> Work:
    """Reading a prompt up to the logits that follow it."""
    runner = model.backbone.runner()
    read = torch.inference_mode()(lambda: model.backbone.logits(_read(runner, 1, tokens).last_hidden()))
    return Work("prefill", f"read {tokens} tokens", tokens, "tokens", read)


def decode(model: AuroraModel, sequences: int) -> Work:
    """Generating token after token of some sequences side by side, as answers are generated."""
    runner = model.backbone.runner()
    with torch.inference_mode():
        steps = Steps(runner, _read(runner, sequences, 2))
    run = torch.inference_mode()(lambda: steps.read(steps.logits.argmax(-1)))
    return Work("decode", f"generate a token, sequences: {sequences}", sequences, "tokens", run, TOKENS_TOGETHER)


def data(config: Config, stage: str) -> Work:
    """Reading training rows, decoded and packed; the first ones wait until the workers have started."""
    module = data_module(config, stage)
    rows = chain.from_iterable(chain.from_iterable(repeat(module.train_dataloader())))
    first = next(rows)
    return Work("data", f"read a row of {len(first.tokens)} tokens", 1, "rows", lambda: next(rows))


def measure_training(config: Config, stage: str, device: torch.device, seconds: float) -> Measurement:
    """Optimizer steps of one full row each, through Lightning's trainer as `aurora train` takes them."""
    model = skeleton(config, stage)
    row = _training_row(model, config.stages[stage].keep_ratio, config.data)
    _check_room(model, device)
    module, watch = training_module(config, stage), Stopwatch(device, seconds)

    def end_lap(trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = watch.lap()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints about loaders and loggers
        L.Trainer(accelerator=device.type, devices=1 if device.index is None else [device.index], max_steps=_ENDLESS,
                  **precision(config.trainer), callbacks=[LambdaCallback(on_train_batch_end=end_lap)],
                  limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  enable_model_summary=False, use_distributed_sampler=False).fit(module, datamodule=_OneRow(row))
    frames = sum(len(group.pixels) for group in row.frames)
    found = watch.measurement(Work("train", f"train on a row of {len(row.tokens)} tokens with {frames} frames",
                                   len(row.tokens), "tokens", lambda: None))
    peak = peak_flops(device, config.trainer.peak_tflops)
    return found if peak is None else found._replace(mfu=module.flops_per_batch / found.median / peak)


class _OneRow(DataModule, L.LightningDataModule):  # type: ignore[misc]
    """The same row in every step."""

    def __init__(self, row: PackedBatch) -> None:
        super().__init__()
        self._row = row

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        return repeat(self._row, steps)

    def steps_per_epoch(self) -> int:
        return _ENDLESS


def _training_row(model: AuroraModel, keep_ratio: float, data: Mapping[str, Any]) -> PackedBatch:
    """A full row [T] of one sample: frames [N, 3, h, w] in front of text, of which half is learned."""
    size = model.vision.prepare.size
    keep = model.visual_layout(keep_ratio).tokens(size, size)
    length = int(data.get("row_tokens") or ROW_TOKENS)
    number = min(int(data.get("row_frames") or ROW_FRAMES), length // 2 // keep)
    tokens = torch.randint(model.tokenizer.vocab_size, (length,))
    tokens[: number * keep] = 0
    targets = torch.full_like(tokens, IGNORE)
    learned = (length + number * keep) // 2
    targets[learned:] = tokens[learned:]
    pixels = torch.randint(256, (number, 3, size, size), dtype=torch.uint8)
    frames = (Frames(pixels, torch.arange(number * keep).view(number, keep)),) if number else ()
    return PackedBatch(tokens, targets, torch.tensor([0, length]), frames, samples=1)


def _check_room(model: AuroraModel, device: torch.device) -> None:
    """AuroraError where weights, gradients and optimizer state alone do not fit into the memory that is free."""
    needed = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        meminfo = Path("/proc/meminfo")
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text("ascii"), re.M) if meminfo.exists() else None
        free = int(found[1]) * 1024 if found else needed
    if needed > free:
        raise AuroraError(f"weights, gradients and optimizer state take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
                          f"are free on {device}")


def _read(runner: Runner, sequences: int, tokens: int) -> Memory:
    """What so many sequences remember of so many random tokens each."""
    ids = torch.randint(runner.backbone.vocab_size, (sequences, tokens)).tolist()
    return read_texts(runner, blank(runner, sequences), ids)


def _reset_peak(device: torch.device) -> bool:
    """Lets the peak start from here, where the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
