"""The same loss curve on 1, 2 and 4 processes: every strategy, every kind of stage, and resumed on another number.

    python tools/check_parallel.py curves [--steps 50] [--stage all]      processes × strategies × kinds of stages
    python tools/check_parallel.py resumed [--steps 8]                    checkpoints of W processes resumed on others

Real processes over gloo on a CPU. Prints a table of the largest relative difference of any step's loss from that on
one process. A tiny model; each step is 8 rows, so that gradients are accumulated, and a third of them is text alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.tiny_training import curve, tiny_config, train_together

LORA = {"lora": {"rank": 2}}
STAGES: dict[str, dict[str, Any]] = {
    "connector": {"trained": ["connector"]},
    "vision+connector": {"trained": ["vision", "connector"]},
    "all": {"trained": ["vision", "connector", "backbone"]},
    "adapters": {"trained": ["connector"], "adapters": {"vision": LORA, "backbone": {**LORA, "state": {}}}},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "ddp on 2": (2, {"strategy": "ddp"}),
    "ddp on 4": (4, {"strategy": "ddp"}),
    "fsdp on 2": (2, {"strategy": "fsdp"}),
    "fsdp on 4": (4, {"strategy": "fsdp"}),
    "fsdp on 4, deferred": (4, {"strategy": "fsdp", "defer_gradient_sync": True}),
    "hybrid 2×2": (4, {"strategy": "fsdp_hybrid", "shard_size": 2}),
    "fsdp on 4, rows by 2": (4, {"strategy": "fsdp", "sequence_parallel": 2}),
    "ddp on 4, rows by 2": (4, {"strategy": "ddp", "sequence_parallel": 2}),
    "hybrid 2×2, rows by 2": (4, {"strategy": "fsdp_hybrid", "shard_size": 2, "sequence_parallel": 2}),
    "fsdp on 4, rows by 4, deferred": (4, {"strategy": "fsdp", "sequence_parallel": 4, "defer_gradient_sync": True}),
}
RESUMED = [("ddp", 1), ("ddp", 2), ("ddp", 4), ("fsdp", 1), ("fsdp", 2), ("fsdp", 4), ("fsdp_hybrid", 2),
           ("fsdp_hybrid", 4)]


def case(run: Path, stage: str, steps: int, processes: int, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One training as `train_together` takes it."""
    config = tiny_config(run, steps=steps, rows_per_step=8)
    recipe = {**config["stages"]["first"], **STAGES[stage], "peak_lr": 1e-3}
    config |= {"stage": "checked", "stages": {"checked": recipe}}
    config["trainer"] |= {"accelerator": "cpu", "progress": "none", "checkpoint_every": 1000, **options}
    return {"config": config, "processes": processes, **more}


def train(cases: list[dict[str, Any]], folder: Path) -> None:
    """Runs them one after the other; AssertionError with what a failed one wrote."""
    train_together(cases, folder, timeout=3600)


def difference(run: Path, right: Path) -> float:
    """The largest relative difference of a step's loss."""
    pairs = zip(curve(run, "checked"), curve(right, "checked"), strict=True)
    return max(abs(float(loss) / float(expected) - 1) for (_, loss), (_, expected) in pairs)


def curves(folder: Path, steps: int, stages: list[str]) -> float:
    """Every layout against one process; returns the largest difference."""
    names = [name for name in LAYOUTS if name != "one"]
    say(f"| stage | {' | '.join(names)} |\n|{'---|' * len(LAYOUTS)}")
    worst = 0.0
    for stage in stages:
        train([case(folder / stage / name, stage, steps, *chosen) for name, chosen in LAYOUTS.items()], folder)
        found = [difference(folder / stage / name, folder / stage / "one") for name in names]
        say(f"| {stage} | {' | '.join(f'{value:.1e}' for value in found)} |")
        worst = max(worst, *found)
    return worst


def resumed(folder: Path, steps: int) -> float:
    """Checkpoints of every layout, resumed by every other; returns the largest difference."""
    train([case(folder / "right", "all", steps, 1, {})], folder)
    layouts = {f"{strategy} on {processes}": (processes, options(strategy, processes))
               for strategy, processes in RESUMED}
    train([case(folder / "saved" / name, "all", steps, *chosen, stops_at=steps // 2)
           for name, chosen in layouts.items()], folder)
    say(f"| saved by, resumed by | {' | '.join(layouts)} |\n|{'---|' * (len(layouts) + 1)}")
    worst = 0.0
    for name in layouts:
        for other in layouts:
            shutil.copytree(folder / "saved" / name, folder / name / other)
        train([case(folder / name / other, "all", steps, *chosen) for other, chosen in layouts.items()], folder)
        found = [difference(folder / name / other, folder / "right") for other in layouts]
        say(f"| {name} | {' | '.join(f'{value:.1e}' for value in found)} |")
        worst = max(worst, *found)
    return worst


def options(strategy: str, processes: int) -> dict[str, Any]:
    """The trainer's options; a hybrid on two processes has two copies."""
    return {"strategy": strategy, **({"shard_size": processes // 2} if strategy == "fsdp_hybrid" else {})}


def say(line: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Prints the table; status 1 when a loss differs by more than 1e-5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curves", "resumed"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--stage", choices=[*STAGES])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "curves":
            worst = curves(Path(folder), given.steps or 50, [given.stage] if given.stage else [*STAGES])
        else:
            worst = resumed(Path(folder), given.steps or 8)
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
