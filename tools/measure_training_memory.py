"""Peak memory of training over the length of a row, whole and in segments of trainer.backprop_tokens.

    python tools/measure_training_memory.py

Each line is `aurora train` in a process of its own: two steps of one row of random text and frames. The first line, a
row of 64 tokens, is what a process takes before rows matter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aurora.training.callbacks.csv_logger import read_metrics

SEGMENT = 2048
FRAMES_PER_ROW = 32
CASES = [(64, None), (4096, None), (8192, None), (4096, SEGMENT), (16_384, SEGMENT), (65_536, SEGMENT)]


def config(run: str, tokens: int, segment: int | None) -> dict[str, Any]:
    """A small model that learns from rows of about so many tokens."""
    frames = FRAMES_PER_ROW if tokens > 64 else 1
    stage = {"after": None, "trained": ["vision", "connector", "backbone"], "mixture": {"random": 1}, "prompt": None,
             "keep_ratio": 0.25, "peak_lr": 1e-3, "global_batch": 1, "epochs": 1}
    return {
        "vision": {"name": "siglip", "image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "heads": 2,
                   "mlp_width": 128},
        "merge": {"name": "tome"}, "sort": {"name": "size"}, "connector": {"name": "mlp"},
        "backbone": {"name": "rwkv6", "hidden_size": 128, "layers": 4, "head_size": 64},
        "tokenizer": {"name": "bytes"}, "prompt": {"name": "sandwich"}, "reader": {"name": "pyav"},
        "data": {"name": "synthetic", "steps": 2, "frames": frames, "height": 64, "width": 64,
                 "text_tokens": tokens - 4 * frames - 1},
        "stages": {"only": stage}, "stage": "only", "run": run, "init_from": None, "restart": False, "seed": 0,
        "dtype": "float32", "keep_ratio": 0.25, "sampling": {"fps": 1.0}, "base_weights": {},
        "trainer": {"threads": 1, "progress": "none", "backprop_tokens": segment},
        "logger": {"csv": {"_target_": "aurora.training.callbacks.csv_logger.CsvLogger"}},
    }


def measure(tokens: int, segment: int | None) -> tuple[float, float]:
    """Peak MiB of the process, and seconds of the second step."""
    with tempfile.TemporaryDirectory() as run:
        path = Path(run, "config.json")
        path.write_text(json.dumps(config(run, tokens, segment)))
        subprocess.run([sys.executable, "-m", "tools.tiny_training", str(path)], check=True,
                       stdout=subprocess.DEVNULL,
                       env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"})
        last = read_metrics(Path(run) / "only")[-1]
    return float(last["memory_gib"]) * 1024, float(last["seconds"])


def main() -> None:
    """Prints the table."""
    sys.stdout.write("| tokens of a row | learned from at once | peak, MiB | seconds of a step |\n|---|---|---|---|\n")
    started, peaks = time.perf_counter(), []
    for tokens, segment in CASES:
        peak, seconds = measure(tokens, segment)
        peaks += [peak] if segment else []
        sys.stdout.write(f"| {tokens:,} | {segment or 'all'} | {peak:,.0f} | {seconds:.1f} |\n")
        sys.stdout.flush()
    sys.stdout.write(f"\nIn segments the peaks differ by {max(peaks) / min(peaks) - 1:.1%}; "
                     f"{time.perf_counter() - started:.0f} s in all.\n")


if __name__ == "__main__":
    main()
