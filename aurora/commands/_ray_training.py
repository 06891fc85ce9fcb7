"""`aurora train --ray`: the processes of a run on a Ray cluster."""

import os
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from aurora.config import Config
from aurora.errors import AuroraError
from aurora.training.stage import plan_stages


def train_on_ray(config: Config, *, workers: int, restarts: int) -> None:
    """Trains in so many processes; when one is lost all start again, from the last checkpoint. AuroraError when they
    fail for good."""
    plan_stages(config, worlds=[workers])
    run = str(Path(config.run).resolve())
    gpu = config.trainer.accelerator != "cpu"
    trainer = TorchTrainer(
        work, train_loop_config={**config.tree, "run": run},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(name="ray", storage_path=run, failure_config=FailureConfig(max_failures=restarts)))
    try:
        trainer.fit()
    # Ray has several kinds of errors for what a worker raises, between its versions
    except Exception as error:
        raise AuroraError(f"training on Ray failed: {_cause(error)}") from error


def work(tree: dict[str, Any]) -> None:
    """What every process runs, after Ray has initialized their group and set each one's rank."""
    os.environ.setdefault("GROUP_RANK", os.environ.get("NODE_RANK", "0"))
    from aurora.training.run import train

    config = Config.parse(tree)
    if config.trainer.threads is None:
        torch.set_num_threads(1)
    train(config)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[-500:]
