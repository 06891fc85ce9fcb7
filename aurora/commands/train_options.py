"""What `aurora train` may be told beside overrides."""

from __future__ import annotations

import argparse

TRAIN = (
    "Trains the stages of a config; settings are changed with Hydra's overrides, such as keep_ratio=0.5, merge=pool or "
    "sampling.fps=2. A stopped run goes on where it was when it is started again. The data of experiment=blocks is "
    "made by `aurora blocks FOLDER`.\n\n"
    "On several nodes, the same command is started on each, or by torchrun or srun as it is; they share run=."
)
EXAMPLE = ("aurora train experiment=blocks data.root=data/blocks\n"
           "  aurora train experiment=blocks data.root=data/blocks stage=vision stages.vision.peak_lr=1e-4\n"
           "  aurora train --nodes 2 --first-node node0 trainer=fsdp data.root=/data run=/shared/run")


def train(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, see configs/aurora.yaml")
    group = parser.add_argument_group("many processes that outlive the loss of one")
    group.add_argument("--nodes", metavar="N", help="machines; 1:4 goes on with what is left of four. Each starts "
                       "trainer.devices processes, again whenever one or another node is lost")
    group.add_argument("--first-node", metavar="HOST[:PORT]", help="the node where all meet, as every node knows it "
                       "(port 29500 unless given)")
    group.add_argument("--restarts", type=int, metavar="N", help="how often they are started again (default 3)")
    group.add_argument("--ray", type=int, metavar="N", help="N processes on a Ray cluster instead (needs "
                       "auroralong[ray]); RAY_ADDRESS names it, without it one is started here")
