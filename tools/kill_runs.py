"""Kills training at random moments, again and again, and checks that the outcome is unchanged.

    python tools/kill_runs.py --kills 100 --seed 0

A third of the kills hit runs of one process, a third each runs of two with whole and with sharded weights, where now
all and now one of them is killed: in steps, in saves, and in validations, of which there is one every three steps. A
killed run is started again until it is through. Then its curve, the losses on held-out rows included, and its model
must be those of a run that nothing happened to, to the bit, and every process must have read the rows of its steps once
each and in order. With --float16 the runs are of precision=16-mixed, and their loss scale, which is part of the curve,
begins so large that it falls in many steps.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from aurora.training.callbacks.csv_logger import read_metrics
from tools.tiny_training import curve, start, start_ranks, tiny_config

STEPS, ROWS = 24, 4
VALIDATION = {"mixture": {"rows": 1}, "every": 3, "max_steps": 2}
STAGE = "first"
MODEL = Path(STAGE, "model", "model.safetensors")
COLUMNS = ("step", "loss", "val_loss", "loss_scale", "overflows")
WIDE = {"one process": (1, {"strategy": "auto"}), "two with whole weights": (2, {"strategy": "ddp"}),
        "two with shards": (2, {"strategy": "fsdp"})}
FLOAT16 = {f"{kind} in float16": (world, {**trainer, "precision": "16-mixed"})
           for kind, (world, trainer) in WIDE.items()}
KINDS = WIDE | FLOAT16
PATIENCE_SECONDS = 120.0


def main() -> int:
    """The exit status is 0 when every run came through unchanged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    parser.add_argument("--float16", action="store_true", help="runs with a loss scale that changes")
    options = parser.parse_args()
    kinds = FLOAT16 if options.float16 else WIDE
    folder = Path(tempfile.mkdtemp(prefix="aurora-kills-"))
    try:
        for number, kind in enumerate(kinds):
            begun, kills = time.monotonic(), (options.kills + number) // len(kinds)
            result = check(folder / kind.replace(" ", "-"), kind, kills, random.Random(options.seed))
            print(f"{kind}: {result}; {time.monotonic() - begun:.0f} s")
    except Changed as changed:
        print(f"not the same: {changed}; what is left lies in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


class Changed(Exception):
    """A killed run is not what it would have been."""


def check(folder: Path, kind: str, kills: int, draw: random.Random) -> str:
    """Kills runs of a kind so often. Says how many runs that were and where they were hit; Changed otherwise."""
    folder.mkdir(parents=True)
    whole, seconds = folder / "whole", _finish(folder / "whole", kind)
    runs, hit = 0, defaultdict(int)
    while sum(hit.values()) < kills:
        run = folder / f"run-{runs}"
        _run_killed(run, kind, seconds, draw, hit, kills)
        _require_same(run, whole)
        runs += 1
    places = ", ".join(f"{count} {place}" for place, count in sorted(hit.items()))
    return f"{kills} kills in {runs} runs ({places}), all as if nothing had happened"


def _run_killed(run: Path, kind: str, seconds: float, draw: random.Random, hit: dict[str, int], kills: int) -> None:
    """Starts a run until it is through; each time it is killed within about the time that a whole one takes."""
    for attempt in range(100 * kills):
        processes = _start(run, kind, attempt)
        deadline = time.monotonic() + draw.uniform(0.05, 1.1) * seconds
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(0.001)
        if all(process.exitcode == 0 for process in processes):
            return
        if sum(hit.values()) >= kills:
            _wait(run, processes)
            return
        hit[_place(run)] += 1
        _kill(processes, draw)


def _kill(processes: list[Any], draw: random.Random) -> None:
    """All of them, or one: then the others end by themselves or, like under a launcher, are ended."""
    chosen = processes if draw.random() < 0.5 else [draw.choice(processes)]
    for process in chosen:
        process.kill()
    for process in processes:
        process.join(draw.uniform(0, 1))
        process.kill()
        process.join()


def _place(run: Path) -> str:
    """What the run was at, as far as the disk tells."""
    stage = run / STAGE
    if any(stage.glob("validation/rows/reading-*")):
        return "in validations"
    if (stage / "model").exists() or len(curve(run, STAGE)) == STEPS:
        return "at the end of the stage"
    steps = [path for path in stage.glob("checkpoints/step-*") if path.is_dir()]
    if not steps:
        return "before the first save"
    return "in saves" if any(not (path / "COMMITTED").exists() for path in steps) else "in steps"


def _start(run: Path, kind: str, attempt: int) -> list[Any]:
    world, trainer = KINDS[kind]
    config = {**tiny_config(run, steps=STEPS, rows_per_step=ROWS, row_tokens=1), "stage": STAGE}
    config["trainer"].update(checkpoint_every=2, **trainer)
    config["stages"][STAGE]["validation"] = VALIDATION
    for left in run.glob(f"{STAGE}/validation/rows/reading-*"):
        left.unlink()  # by the attempt before
    log = {"READ_LOG": f"{run}.read-{attempt:04d}"}
    if world == 1:
        return [start(config, f"{run}.said", **log)]
    return start_ranks(config, f"{run}.said", world, **log)


def _wait(run: Path, processes: list[Any]) -> None:
    for process in processes:
        process.join(PATIENCE_SECONDS)
    if any(process.exitcode != 0 for process in processes):
        raise Changed(f"{run} did not go on: exit status {[process.exitcode for process in processes]}")


def _finish(run: Path, kind: str) -> float:
    """Seconds of a run that nothing happens to; the second one, which finds everything imported."""
    for number in range(2):
        shutil.rmtree(run, ignore_errors=True)
        begun = time.monotonic()
        _wait(run, _start(run, kind, number))
    return time.monotonic() - begun


def _written(run: Path) -> list[list[str | None]]:
    """The curve, the losses on held-out rows and the scale of the loss, exactly as written."""
    return [[row.get(name) for name in COLUMNS] for row in read_metrics(run / STAGE)]


def _require_same(run: Path, whole: Path) -> None:
    if _written(run) != _written(whole):
        raise Changed(f"the curve of {run}")
    if (run / MODEL).read_bytes() != (whole / MODEL).read_bytes():
        raise Changed(f"the model of {run}")
    attempts = defaultdict(lambda: defaultdict(list))
    for log in run.parent.glob(f"{run.name}.read-*"):
        for line in log.read_text().splitlines():
            step, row = map(int, line.split())
            attempts[log.name.rpartition("-")[0]][step].append(row)
    done: set[int] = set()
    for name, steps in sorted(attempts.items()):
        if sorted(steps) != list(range(min(steps), max(steps) + 1)) or min(steps) > len(done):
            raise Changed(f"{name} read the steps {sorted(steps)} after {len(done)} were read whole")
        for step, rows in steps.items():
            if len(set(rows)) != len(rows) or not set(rows) <= set(range(step * ROWS, (step + 1) * ROWS)):
                raise Changed(f"{name} read the rows {rows} in step {step}")
            if len(rows) == ROWS:
                done.add(step)
    if done != set(range(STEPS)):
        raise Changed(f"{run} never read all rows of {sorted(set(range(STEPS)) - done)}")


if __name__ == "__main__":
    sys.exit(main())
