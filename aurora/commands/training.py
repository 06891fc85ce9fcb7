"""`aurora train`."""

from __future__ import annotations

from argparse import Namespace

from aurora.config import load_config
from aurora.errors import AuroraError


def train(options: Namespace) -> int:
    """Trains the stages that the config names: here, on several nodes, or on a Ray cluster."""
    if options.nodes is not None and options.ray is not None:
        raise AuroraError("--nodes and --ray exclude each other: Ray knows its machines itself")
    config = load_config(options.overrides)
    if options.nodes is not None:
        from aurora.commands.launching import launch

        return launch(config, options)
    if options.ray is not None:
        from aurora.commands.ray_training import train_on_ray

        train_on_ray(config, workers=options.ray, restarts=options.restarts)
        return 0
    from aurora.training.run import train as run

    run(config)
    return 0
