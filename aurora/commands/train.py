from dataclasses import dataclass
from typing import Annotated

import typer

from aurora.commands._options import Overrides
from aurora.errors import AuroraError

RESTARTS = 3


@dataclass(frozen=True)
class Processes:
    """Several nodes and fault tolerance"""

    nodes: Annotated[str | None, typer.Option(metavar="N", help=(
        "Number of nodes, or MIN:MAX for elastic training. Each starts trainer.devices processes; all restart when one "
        "is lost."))] = None
    first_node: Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help=(
        "Rendezvous host, as every node can reach it (default port 29500)."))] = None
    restarts: Annotated[int | None, typer.Option(
        metavar="N", min=0, help=f"How often processes are restarted. Default: {RESTARTS}.")] = None
    ray: Annotated[int | None, typer.Option(metavar="N", min=1, help=(
        "N processes on a Ray cluster instead (needs the extra auroralong\\[ray]). RAY_ADDRESS names it; without it "
        "one is started here."))] = None

    def __post_init__(self) -> None:
        if self.nodes is not None and self.ray is not None:
            raise AuroraError("--nodes and --ray exclude each other: Ray knows its machines itself")
        if self.first_node is not None and self.nodes is None:
            raise AuroraError("--first-node needs --nodes, which says how many meet there")
        if self.restarts is not None and self.nodes is None and self.ray is None:
            raise AuroraError("--restarts needs --nodes or --ray: a process that is started alone is not started again")


def train(*, overrides: Overrides, processes: Processes) -> int:
    """Train one stage, or all of them in order.

    Trains the stages of a config. A stopped run resumes when it is started again. The data of
    experiment=blocks is made by `aurora blocks FOLDER`.

    On several nodes, the same command is started on each, or by torchrun or srun as it is; they share run=.

    \b
    example:
      aurora train experiment=blocks data.root=data/blocks
      aurora train experiment=blocks data.root=data/blocks stage=vision \\
        stages.vision.peak_lr=1e-4
      aurora train --nodes 2 --first-node node0 trainer=fsdp \\
        data.root=/data run=/shared/run
    """
    from aurora.terminal import Waiting

    restarts = RESTARTS if processes.restarts is None else processes.restarts
    with Waiting("loading"):
        from aurora.config import load_config

        config = load_config(*overrides)
    if processes.nodes is not None:
        from aurora.commands._launching import launch

        return launch(config, overrides, nodes=processes.nodes, first=processes.first_node, restarts=restarts)
    if processes.ray is not None:
        from aurora.commands._ray_training import train_on_ray

        train_on_ray(config, workers=processes.ray, restarts=restarts)
        return 0
    with Waiting("loading"):
        from aurora.training.run import train as run

    run(config)
    return 0
