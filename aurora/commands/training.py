"""`aurora train`."""

from __future__ import annotations

from argparse import Namespace

from aurora.config import load_config


def train(options: Namespace) -> int:
    """Trains the stages that the config names."""
    config = load_config(options.overrides)
    from aurora.training.run import train as run

    run(config)
    return 0
