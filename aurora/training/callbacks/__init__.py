"""The callbacks and loggers that a config names: Lightning's own, ours, and those of installed packages."""

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

from aurora.errors import AuroraError
from aurora.instantiate import check_entries, construct, instantiate, resolve
from aurora.training.distributed.collectives import is_peer_failure, keep_traceback

REFUSED = {
    "StochasticWeightAveraging": "stages.STAGE.average averages the weights, and checkpoints hold it",
    "WeightAveraging": "stages.STAGE.average averages the weights, and checkpoints hold it",
    "GradientAccumulationScheduler": "a step takes stages.STAGE.global_batch samples, however many rows they fill",
    "BatchSizeFinder": "data.row_tokens is the size of a row",
    "LearningRateFinder": "it needs automatic optimization; stages.STAGE.peak_lr is the rate",
    "BaseFinetuning": "stages.STAGE.trained says what is trained, from the first step to the last",
    "ModelPruning": "it renames weights, which nothing else could read then",
    "BasePredictionWriter": "training predicts nothing; `aurora eval` does",
    "ThroughputMonitor": "it takes a function, which a config cannot hold. The step metrics have tokens_per_second, "
                         "samples_per_second and mfu; in your own script batch_size_fn=lambda step: step.samples works",
    "SpikeDetection": "it skips batches of its own accord; trainer.spike skips steps or rolls back",
    "LambdaCallback": "it takes functions, which a config cannot hold; a class of your own package can be named",
}
"""What would do nothing here, or harm: Lightning's name, and the reason."""


def check_callbacks(entries: Mapping[str, Any], *, validated: bool) -> None:
    """AuroraError for a callback that cannot work. `validated` says whether a stage has validation."""
    check_entries("trainer.callbacks", entries, L.Callback)
    for name, entry in entries.items():
        kind = resolve(entry["_target_"])
        for base in kind.__mro__:
            if base.__module__.startswith("lightning.") and base.__name__ in REFUSED:
                raise AuroraError(f"trainer.callbacks.{name}: {kind.__name__} cannot be used here: "
                                  f"{REFUSED[base.__name__]}")
        needs = issubclass(kind, EarlyStopping) or getattr(kind, "needs_validation", False)
        if not validated and (needs or str(entry.get("monitor")).startswith("val_")):
            raise AuroraError(f"trainer.callbacks.{name}: {kind.__name__} acts after each validation, and no stage "
                              "has any; stages.STAGE.validation.mixture says what is held out")


def build_callbacks(entries: Mapping[str, Any]) -> dict[str, L.Callback]:
    """The callbacks by name. AuroraError for options that one does not take."""
    return {name: construct(f"trainer.callbacks.{name}", instantiate, entry) for name, entry in entries.items()}


def stopping_reason(callbacks: Mapping[str, L.Callback]) -> str:
    """Which callbacks may have ended a stage before its last step, and what they say about it."""
    reasons = [getattr(callback, "stopping_reason_message", None) for callback in callbacks.values()]
    return ": ".join([f"trainer.callbacks ({', '.join(callbacks)})", *filter(None, reasons)])


@contextmanager
def failures_named(callbacks: Mapping[str, L.Callback], folder: Path, step: Callable[[], int]) -> Iterator[None]:
    """Raises AuroraError with the name of the callback when one fails in the block; `folder` gets the traceback."""
    try:
        yield
    except Exception as error:
        # the callback that the error came through
        through = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        name = next((name for each in through for name, callback in callbacks.items() if each is callback), None)
        if name is None or isinstance(error, AuroraError) or is_peer_failure(error):
            raise
        text = " ".join(str(error).split())
        raise AuroraError(f"trainer.callbacks.{name} failed after step {step()}: {type(error).__name__}: {text}; "
                          f"{keep_traceback(folder, error)}") from error


# ---- loggers ---------------------------------------------------------------------------------------------------


def build_loggers(entries: Mapping[str, Mapping[str, Any]], folder: Path, resume_step: int,
                  report: Callable[[str], None]) -> list[Any]:
    """The loggers of configs/logger, writing below `folder` and continuing after `resume_step`. One that fails later is
    reported once, and training goes on."""
    return [_tolerated(construct(f"logger.{name}", _build, entry, folder, resume_step), report)
            for name, entry in entries.items()]


def _tolerated(logger: Any, report: Callable[[str], None]) -> Any:
    """The logger, whose failures (a full disk, a server that is away) are not worth a run."""
    log = logger.log_metrics
    failed: set[int | None] = set()

    def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            log(metrics, step)
        except Exception as error:
            if not failed:
                report(f"{type(logger).__name__} could not write after step {step}, and training goes on: {error}")
            failed.add(step)

    logger.log_metrics = log_metrics
    return logger


def _build(entry: Mapping[str, Any], folder: Path, resume_step: int) -> Any:
    """A logger that has found its server and its files."""
    kind = str(entry.get("_target_", "")).rpartition(".")[2]
    if kind == "MLFlowLogger":
        return _mlflow(entry, folder, resume_step)
    place = folder.absolute()
    facts: dict[str, dict[str, Any]] = {
        "CsvLogger": {"resume_step": resume_step},
        "TensorBoardLogger": {"purge_step": resume_step + 1},
        # the same folder is the same run, whoever starts it again
        "WandbLogger": {"id": hashlib.sha256(str(place).encode()).hexdigest()[:16], "name": "/".join(place.parts[-2:])},
    }
    logger = instantiate({"save_dir": str(folder), **facts.get(kind, {}), **entry})
    if rank_zero_only.rank == 0:
        getattr(logger, "experiment", None)
    return logger


def _mlflow(entry: Mapping[str, Any], folder: Path, resume_step: int) -> Any:
    """MLflow makes the name of a run itself: it is kept beside the curve for whoever goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "mlflow_run"
    facts: dict[str, Any] = {"run_name": folder.name, "tracking_uri": f"sqlite:///{folder.absolute() / 'mlflow.db'}"}
    if resume_step and kept.is_file():
        facts["run_id"] = kept.read_text(encoding="utf-8").strip()
    logger = instantiate({**facts, **{key: value for key, value in entry.items() if value is not None}})
    if rank_zero_only.rank == 0:
        kept.write_text(logger.run_id, encoding="utf-8")
    return logger
