"""The job of a sweep, as Hydra's launchers start it: `python -m aurora.evaluation.sweep.job --multirun …`.

Hydra expands the grid and hands it to whichever launcher is installed, by its public entry, `hydra.main`. It does not
compose Aurora's config: a job is a command of Aurora's, which composes its own, also that of a saved model. So the
config here is empty, every axis has a number in place of its key (`+axis0=0.1,0.2`), and a job reads the values of its
axes from the overrides that Hydra gave it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from aurora.config import part_by_option
from aurora.errors import AuroraError
from aurora.evaluation.predictions import PREDICTIONS_FILE, digest, read_predictions
from aurora.evaluation.sweep.plan import RESULT_FILE, Job, Plan
from aurora.files import read_json, replacing, write_json
from aurora.registry import BENCHMARK

JOB_FILE = "job.json"
LOG_FILE = "log.txt"
DONE_FILE = "trained.json"
AXIS = "+axis"


@hydra.main(version_base="1.3", config_path=None)  # type: ignore[untyped-decorator]
def main(config: DictConfig) -> None:
    """Runs the job that Hydra's overrides describe. What fails is written beside the job and ends no other."""
    values = [word.partition("=") for word in HydraConfig.get().overrides.task if word.startswith(AXIS)]
    output = Path(config.output)
    plan = Plan.read(output)
    job = Job(plan, {list(plan.axes)[int(key.removeprefix(AXIS))]: value for key, _, value in values})
    run(job, output)


def run(job: Job, output: Path) -> None:
    """Trains, if that is asked for, and evaluates, unless that was done before; a job that was killed goes on.

    What was answered by another model, or to other questions, than there are now is discarded.
    """
    folder = job.folder(output)
    if _is_done(folder) and not _is_stale(job, output):
        return
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    _write(folder, job, failure="it was ended before it was done", seconds=None)
    trained = job.trained(output)
    failure = None if trained is None else _train(job, output, trained)
    if failure is None:
        if _is_stale(job, output):
            for name in (RESULT_FILE, PREDICTIONS_FILE):  # predictions last: they say that a job is stale
                (folder / name).unlink(missing_ok=True)
        failure = _command(["eval", *job.eval_words(output)], folder / LOG_FILE)
    _write(folder, job, failure=failure, seconds=time.time() - began)


def _is_done(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (RESULT_FILE, JOB_FILE)) and \
        read_json(folder / JOB_FILE).get("failure") is None


def _is_stale(job: Job, output: Path) -> bool:
    """Whether the model or the questions have changed since the job's first answer."""
    path = job.folder(output) / PREDICTIONS_FILE
    if not path.is_file():
        return False
    from aurora.inference.models import model_folder  # torch takes seconds, which a job without answers does not need
    from aurora.weights.model_folder import model_hash

    what = job.evaluated(output)
    try:
        made_with, _ = read_predictions(path)
        chosen, _ = part_by_option("benchmark", what.benchmark, what.overrides)
        now = {"model": model_hash(model_folder(what.model)),
               "questions": digest(BENCHMARK.build(chosen).items(Path(what.data)).items)}
    except AuroraError:  # what is gone, such as a trained model, has no other score
        return False
    return any(made_with.get(key) != value for key, value in now.items())


def _train(job: Job, output: Path, trained: Path) -> str | None:
    """Why training failed. Jobs that share a training wait until one of them has done it."""
    trained.mkdir(parents=True, exist_ok=True)
    with FileLock(trained / ".lock"):
        if (trained / DONE_FILE).is_file():
            return None
        failure = _command(["train", *job.train_words(output)], trained / LOG_FILE)
        if failure is None:
            with replacing(trained / DONE_FILE, folder=False) as partial:
                write_json(partial, {"overrides": job.train_words(output)})
    return failure


def _command(words: list[str], log: Path) -> str | None:
    """Runs a command of Aurora's; its last line where it failed."""
    with log.open("ab") as file:
        begin = file.tell()
        # what is written to a file is no terminal, and a launcher's threads are not meant for the command
        status = subprocess.run([sys.executable, "-m", "aurora", *words], stdin=subprocess.DEVNULL, stdout=file,
                                stderr=file, env=os.environ.copy(), check=False).returncode
    if status == 0:
        return None
    said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return f"aurora {words[0]} ended with status {status}: {said[-1]}"


def _write(folder: Path, job: Job, **found: Any) -> None:
    with replacing(folder / JOB_FILE, folder=False) as partial:
        write_json(partial, {"values": dict(job.values), **found})


if __name__ == "__main__":
    main()
