"""How fast one configuration runs on this machine: what `aurora bench` measures.

Shape letters: T packed positions, N frames, M tokens per frame.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aurora.errors import AuroraError
from aurora.inference.reading import Memory
from aurora.inference.steps import Steps
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.training.blocks import prepare_blocks
from aurora.training.flops import forward_flops, peak_flops, training_flops
from aurora.training.optim import build_optimizer, parameter_groups
from aurora.training.recipe import Recipe, TrainerOptions
from aurora.types import IGNORE, Frames, PackedBatch

FEWEST_RUNS = 3
TOKENS_TOGETHER = 16  # that decoding is timed over
LOW_PRECISION = {"bf16-mixed": torch.bfloat16, "bf16-gathered": torch.bfloat16, "16-mixed": torch.float16}
ROW_TOKENS, ROW_FRAMES = 4096, 16  # of a training row, where the data config does not say


class Work(NamedTuple):
    """What is to be measured."""

    name: str
    what: str  # what one run does
    items: float  # of one run
    unit: str
    run: Callable[[], object]
    together: int = 1  # runs that are timed as one, because a single one is too short
    flops: float | None = None  # of one run
    peak: float | None = None  # FLOP/s of the device


class Measurement(NamedTuple):
    """One kind of work, run again and again."""

    name: str
    what: str  # what one run does
    items: float  # of one run
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


def measure(work: Work, device: torch.device, seconds: float) -> Measurement:
    """Warms the work up, then runs it for so many seconds, at least three times."""
    reset = _reset_peak(device)
    _time(work, device)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < FEWEST_RUNS or time.perf_counter() < end:
        samples.append(_time(work, device))
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    mfu = None if work.flops is None or work.peak is None else work.flops / median / work.peak
    return Measurement(work.name, work.what, work.items, work.unit, median, low, high, work.together * len(samples),
                       _peak(device) if reset else None, mfu)


def vision(model: AuroraModel, keep_ratio: float, frames: int) -> Work:
    """Encoding frames [N, 3, h, w] of the size that the encoder prepares into what the language model reads."""
    size = model.vision.prepare.size
    keep = model.layout(keep_ratio).tokens(size, size)
    pixels = torch.randint(256, (frames, 3, size, size), dtype=torch.uint8, device=device_of(model))
    return Work("vision", f"encode {frames} frames of {size}×{size} to {keep} tokens each", frames, "frames",
                torch.inference_mode()(lambda: model.encode(pixels, keep)))


def prefill(model: AuroraModel, tokens: int) -> Work:
    """Reading a prompt up to the logits that follow it."""
    read = torch.inference_mode()(lambda: model.backbone.logits(_read(model, 1, tokens).last_hidden()))
    return Work("prefill", f"read {tokens} tokens", tokens, "tokens", read)


def decode(model: AuroraModel, sequences: int) -> Work:
    """Generating token after token of some sequences side by side, as answers are generated."""
    with torch.inference_mode():
        steps = Steps(model.backbone, _read(model, sequences, 2))

    run = torch.inference_mode()(lambda: steps.read(steps.logits.argmax(-1)))
    return Work("decode", f"generate a token, sequences: {sequences}", sequences, "tokens", run, TOKENS_TOGETHER)


def train(model: AuroraModel, recipe: Recipe, options: TrainerOptions, row: PackedBatch) -> Work:
    """Forward pass, backward pass and optimizer step over one packed row."""
    device = device_of(model)
    prepare_blocks(model, options)
    optimizer = build_optimizer(parameter_groups(model, recipe), recipe, fused=True)
    low = LOW_PRECISION.get(options.precision)
    frames, targets = sum(len(group.pixels) for group in row.frames), int((row.targets != IGNORE).sum())

    def run() -> None:
        with torch.autocast(device.type, low, enabled=low is not None):
            loss = model(row)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()

    flops = training_flops(model, forward_flops(model, recipe.keep_ratio), frames=frames, positions=len(row.tokens),
                           targets=targets)
    return Work("train", f"train on a row of {len(row.tokens)} tokens with {frames} frames", len(row.tokens), "tokens",
                run, flops=flops, peak=peak_flops(device, options.peak_tflops))


def data(module: DataModule) -> Work:
    """Reading training rows, decoded and packed; the first ones wait until the workers have started."""
    rows = _rows(module)
    first = next(rows)
    return Work("data", f"read a row of {len(first.tokens)} tokens", 1, "rows", lambda: next(rows))


def training_row(model: AuroraModel, recipe: Recipe, data: Mapping[str, Any]) -> PackedBatch:
    """A full row [T] of one sample: frames [N, 3, h, w] in front of text, of which half is learned."""
    device, size = device_of(model), model.vision.prepare.size
    keep = model.layout(recipe.keep_ratio).tokens(size, size)
    length = int(data.get("row_tokens") or ROW_TOKENS)
    number = min(int(data.get("row_frames") or ROW_FRAMES), length // 2 // keep)
    tokens = torch.randint(model.tokenizer.vocab_size, (length,), device=device)
    tokens[: number * keep] = 0
    targets = torch.full_like(tokens, IGNORE)
    targets[(length + number * keep) // 2 :] = tokens[(length + number * keep) // 2 :]
    pixels = torch.randint(256, (number, 3, size, size), dtype=torch.uint8, device=device)
    positions = torch.arange(number * keep, device=device).view(number, keep)
    frames = (Frames(pixels, positions),) if number else ()
    return PackedBatch(tokens, targets, torch.tensor([0, length]), frames, samples=1)


def check_room(model: AuroraModel, device: torch.device) -> None:
    """AuroraError where the gradients and the optimizer's state alone do not fit into the memory that is free."""
    needed = sum(3 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _kibibytes("/proc/meminfo", "MemAvailable")
    if free is not None and needed > free:
        raise AuroraError(f"gradients and optimizer state take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
                          f"on {device}")


def device_of(model: AuroraModel) -> torch.device:
    """Where the model is."""
    return next(model.parameters()).device


def _time(work: Work, device: torch.device) -> float:
    """Seconds of a run."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(work.together):
        work.run()
    _wait(device)
    return (time.perf_counter() - start) / work.together


def _read(model: AuroraModel, sequences: int, tokens: int) -> Memory:
    """What so many sequences remember of so many random tokens each."""
    ids = torch.randint(model.tokenizer.vocab_size, (sequences * tokens,), device=device_of(model))
    bounds = torch.arange(sequences + 1) * tokens
    state = model.backbone.init_state(sequences)
    return Memory(*model.backbone.prefill(model.backbone.embed(ids), bounds, state))


def _rows(module: DataModule) -> Iterator[PackedBatch]:
    while True:
        for step in module.train_dataloader():
            yield from step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _kibibytes("/proc/self/status", "VmHWM")


def _kibibytes(path: str, field: str) -> int | None:
    """Bytes that a line such as `VmHWM:  1234 kB` of a file says; None where there is no such line."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
