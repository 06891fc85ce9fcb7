"""Peak memory of training over the length of a row, whole and in pieces of trainer.backprop_tokens.

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

PIECE = 2048
FRAMES_PER_ROW = 32
CASES = [(64, None), (4096, None), (8192, None), (4096, PIECE), (16_384, PIECE), (65_536, PIECE)]


def config(run: str, tokens: int, piece: int | None) -> dict[str, Any]:
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
        "trainer": {"threads": 1, "progress": "none", "backprop_tokens": piece},
        "logger": {"csv": {"_target_": "aurora.training.logs.CsvLogger"}},
    }


def measure(tokens: int, piece: int | None) -> tuple[float, float]:
    """Peak MiB of the process, and seconds of the second step."""
    from aurora.training.callbacks.csv_logger import read_metrics

    with tempfile.TemporaryDirectory() as run:
        told = json.dumps(config(run, tokens, piece))
        command = "import json, sys; from aurora.training.run import train; train(json.loads(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", command, told], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"})
        last = read_metrics(Path(run) / "only")[-1]
    return float(last["memory_gib"]) * 1024, float(last["seconds"])


def main() -> None:
    """Prints the table."""
    sys.stdout.write("| tokens of a row | learned from at once | peak, MiB | seconds of a step |\n|---|---|---|---|\n")
    started, peaks = time.perf_counter(), []
    for tokens, piece in CASES:
        peak, seconds = measure(tokens, piece)
        peaks += [peak] if piece else []
        sys.stdout.write(f"| {tokens:,} | {piece or 'all'} | {peak:,.0f} | {seconds:.1f} |\n")
        sys.stdout.flush()
    sys.stdout.write(f"\nIn pieces the peaks differ by {max(peaks) / min(peaks) - 1:.1%}; "
                     f"{time.perf_counter() - started:.0f} s in all.\n")


if __name__ == "__main__":
    main()
