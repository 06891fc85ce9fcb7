"""`aurora demo`."""

from __future__ import annotations

from argparse import Namespace


def demo(options: Namespace) -> int:
    """The main job in small."""
    from aurora.demo.run import demo as run

    run(options.folder, scale=options.scale, seed=options.seed, overrides=options.overrides)
    return 0
