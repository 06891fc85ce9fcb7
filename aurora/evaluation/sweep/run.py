"""Starts Hydra's multirun for a plan, and gathers what the jobs have left: scores, costs, failures."""

import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from aurora.assemble import build_model
from aurora.config import CONFIG_FILE, load_config, part_by_option, read_config
from aurora.curve import read_metrics
from aurora.errors import AuroraError, suggest
from aurora.evaluation.record import facts
from aurora.evaluation.sweep.job import AXIS, JOB_FILE
from aurora.evaluation.sweep.plan import JOBS_FOLDER, RESULT_FILE, Job, Plan, repeats
from aurora.files import read_json, replacing, write_json
from aurora.inference.models import model_folder
from aurora.registry import BENCHMARK, READER, SKIP

SWEEP_FILE = "sweep.json"
STANDARD_ERROR = 2  # where Hydra says which job it launches: standard output is for results
MARKS = (0.9, 0.8)
"""Shares of the peak for which the paper's figures show the keep ratio that still holds them."""


class Spread(NamedTuple):
    """A mean over seeds, with the sample standard deviation; 0 of a single one."""

    mean: float
    deviation: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def run_sweep(plan: Plan, output: Path, hydra: Sequence[str]) -> int:
    """Runs the jobs that are not done yet, with the launcher that `hydra` chooses; the status of Hydra's process.

    AuroraError before any job runs for a value that none could run with.
    """
    check(plan, output)
    plan.write(output)
    axes = [f"{AXIS}{number}={values}" for number, values in enumerate(plan.axes.values())]
    own = [f"+output='{output.resolve()}'", f"hydra.sweep.dir='{output.resolve() / 'hydra'}'",
           "hydra.sweep.subdir=${hydra.job.num}", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    command = [sys.executable, "-m", "aurora.evaluation.sweep.job", "--multirun", *own, *hydra, *axes]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=STANDARD_ERROR, check=False).returncode


def check(plan: Plan, output: Path) -> None:
    """AuroraError for an option or a value that jobs could not run with. Every value of an axis is tried with the first
    ones of the others: all are points of the grid."""
    grid = plan.values()
    first = {key: values[0] for key, values in grid.items()}
    default = None
    if not plan.train and plan.model is None and "model" not in plan.axes:
        default = str(model_folder(None))
    points = [first, *({**first, key: value} for key, values in grid.items() for value in values[1:])]
    for values in points:
        try:
            _check_job(Job(plan, values), output, default)
        except AuroraError as error:
            named = ", ".join(f"{key}={value}" for key, value in values.items())
            raise AuroraError(f"no job can run with {named}: {error}") from error


def _check_job(job: Job, output: Path, default: str | None) -> None:
    what = job.evaluated(output)
    chosen, overrides = part_by_option("benchmark", what.benchmark, what.overrides)
    BENCHMARK.build(chosen)
    if not Path(what.data).is_dir():
        raise AuroraError(f"{what.data} is not a folder")
    if job.plan.train:
        trained = load_config(*job.train_words(output))
        if job.plan.stage not in trained.stages:
            raise AuroraError(f"no stage named {job.plan.stage!r}.{suggest(job.plan.stage, list(trained.stages))}")
        config = trained.model.override(overrides)
    else:
        config = read_config(what.model or str(default)).override(overrides)
    with torch.device("meta"):
        build_model(config)
    SKIP.build(config.skip)
    READER.build(config.reader)


def gather(output: Path, *, repeated: Sequence[str] = ()) -> dict[str, Any]:
    """The jobs of a sweep with their scores, and means over seeds; it is also written to sweep.json.

    AuroraError where no job has begun.
    """
    plan = Plan.read(output)
    jobs = list(_jobs(plan, output))
    if not jobs:
        raise AuroraError(f"no job of {output} has begun")
    over = repeats(plan.axes, repeated)
    result = {"plan": read_json(output / "plan.json"), "repeats": over, "jobs": jobs, "means": means(jobs, over),
              "curves": curves(jobs, over), **facts(plan.device)}
    with replacing(output / SWEEP_FILE, folder=False) as partial:
        write_json(partial, result)
    return result


def _jobs(plan: Plan, output: Path) -> Iterator[dict[str, Any]]:
    grid = plan.values()

    def place(job: tuple[Path, dict[str, Any]]) -> list[int]:
        """In the grid; values of an earlier call that are no longer asked for come last."""
        return [grid[key].index(value) if value in grid[key] else len(grid[key])
                for key, value in job[1]["values"].items()]

    found = [(path, read_json(path)) for path in sorted((output / JOBS_FOLDER).glob(f"*/{JOB_FILE}"))]
    for path, described in sorted(found, key=place):
        job = Job(plan, described["values"])
        result = read_json(path.with_name(RESULT_FILE)) if path.with_name(RESULT_FILE).is_file() else {}
        trained = job.trained(output)
        score, why = _score(result, path.parent)
        failure = described["failure"] or (why if score is None else None)
        if failure and any(value not in grid[key] for key, value in job.values.items()):
            continue  # a value that is no longer asked for, such as a typo
        yield {"values": described["values"], "folder": path.parent.relative_to(output).as_posix(), "score": score,
               "metric": result.get("metric"), "families": _families(result),
               "failure": failure, "seconds": described["seconds"],
               "gpu_hours": None if trained is None else training_hours(trained)}


def _score(result: Mapping[str, Any], folder: Path) -> tuple[float | None, str]:
    """The headline of a result; else why there is none."""
    if isinstance(result.get("score"), (int, float)):
        return float(result["score"]), ""
    if result.get("judge_needed") and "judge" not in result:
        return None, f"it has no score yet: `aurora judge {folder}` gives it, then run `aurora sweep --gather`"
    return None, str(result.get("not_scored", "it has no score"))


def _families(result: Mapping[str, Any]) -> dict[str, float]:
    found = result.get("families")
    return {name: float(one["accuracy"]) for name, one in found.items()
            if isinstance(one, Mapping) and isinstance(one.get("accuracy"), (int, float))} \
        if isinstance(found, Mapping) else {}


def training_hours(run: Path) -> float | None:
    """Device hours of all stages of a run, from the seconds of its optimizer steps; None before the first."""
    stages = [(folder, read_metrics(folder)) for folder in run.iterdir() if folder.is_dir()] if run.is_dir() else []
    hours = [sum(float(row["seconds"]) for row in rows if row.get("seconds")) / 3600 * _devices(folder)
             for folder, rows in stages if rows]
    return sum(hours) if hours else None


def _devices(stage: Path) -> int:
    """How many devices a stage was trained on, as far as its config says it."""
    path = stage / CONFIG_FILE
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    devices = (tree.get("trainer") or {}).get("devices", 1)
    return len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1


def means(jobs: Iterable[Mapping[str, Any]], over: Sequence[str]) -> list[dict[str, Any]]:
    """For every point of the grid without its seeds: the spread of scores, and the mean cost of training."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job["score"] is not None:
            point = tuple((key, value) for key, value in job["values"].items() if key not in over)
            groups.setdefault(point, []).append(job)
    found = []
    for point, same in groups.items():
        costs = [job["gpu_hours"] for job in same if job["gpu_hours"] is not None]
        found.append({"values": dict(point), **Spread.of([job["score"] for job in same])._asdict(),
                      "gpu_hours": statistics.fmean(costs) if costs else None})
    return found


def curves(jobs: Sequence[Mapping[str, Any]], over: Sequence[str]) -> list[dict[str, Any]]:
    """Score against keep ratio, one curve for every point of the other axes, with the least ratios that hold shares of
    the peak; none where fewer than two ratios were evaluated."""
    groups: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for point in means(jobs, over):
        key = next((key for key in point["values"] if key.removeprefix("eval.") == "keep_ratio"), None)
        if key is not None:
            others = tuple((name, value) for name, value in point["values"].items() if name != key)
            groups.setdefault(others, []).append({**point, "keep_ratio": float(point["values"][key])})
    return [{"values": dict(others), "points": sorted(points, key=lambda point: point["keep_ratio"]),
             "holds": {f"{share:g}": holding(points, share) for share in MARKS}}
            for others, points in groups.items() if len(points) > 1]


def holding(points: Sequence[Mapping[str, Any]], share: float) -> float | None:
    """The least keep ratio from which on every larger one scores at least this share of the peak; None of a peak of 0.
    """
    peak = max(point["mean"] for point in points)
    held = None
    if peak <= 0:
        return held
    for point in sorted(points, key=lambda point: -point["keep_ratio"]):
        if point["mean"] < share * peak - math.ulp(peak):
            break
        held = point["keep_ratio"]
    return held
