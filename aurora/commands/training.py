"""`aurora train`."""

from __future__ import annotations

from argparse import Namespace

from aurora.config import load_config
from aurora.errors import AuroraError

RESTARTS = 3


def train(options: Namespace) -> int:
    """Trains the stages that the config names: here, on several nodes, or on a Ray cluster."""
    _check(options)
    restarts = RESTARTS if options.restarts is None else options.restarts
    config = load_config(*options.overrides).tree
    if options.nodes is not None:
        from aurora.commands.launching import launch

        return launch(config, options.overrides, nodes=options.nodes, first=options.first_node, restarts=restarts)
    if options.ray is not None:
        from aurora.commands.ray_training import train_on_ray

        train_on_ray(config, workers=options.ray, restarts=restarts)
        return 0
    from aurora.training.run import train as run

    run(config)
    return 0


def _check(options: Namespace) -> None:
    """AuroraError for options that make no sense or would not be heard."""
    if options.nodes is not None and options.ray is not None:
        raise AuroraError("--nodes and --ray exclude each other: Ray knows its machines itself")
    if options.first_node is not None and options.nodes is None:
        raise AuroraError("--first-node needs --nodes, which says how many meet there")
    if options.restarts is not None and options.nodes is None and options.ray is None:
        raise AuroraError("--restarts needs --nodes or --ray: a process that is started alone is not started again")
    if options.restarts is not None and options.restarts < 0:
        raise AuroraError(f"--restarts {options.restarts} must be 0 or more")
