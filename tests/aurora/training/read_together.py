"""Loss and gradient of a row read by several ranks, against one rank: run as a script, it prints the differences.

    python read_together.py      {"rwkv6 on 2": [loss difference, gradient difference], ...} as JSON, all relative
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from test_pieces import RECURRENT, long_row
from aurora.testing.training import tiny_config
from together import fork

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.registry import BACKBONE
from aurora.training.distributed.collectives import with_equal_frames
from aurora.training.distributed.sequence_parallel import SequenceParallelGroup, read_together
from aurora.training.distributed.strategies import checkpoint_blocks


def model_of(backbone):
    """In float64, so that only what is wrong shows; blocks recomputed and the initial state tuned."""
    torch.manual_seed(0)
    config = tiny_config("run")
    config["backbone"] = {**config["backbone"], "name": backbone}
    model = build_model(ModelConfig.parse(config))
    model.backbone.tune_state("state")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.double()


def learn(model, row):
    """The loss, and the gradients in one tensor."""
    loss = model(row)
    loss.total.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([loss.total.detach().double()[None], *(gradient.flatten().double() for gradient in gradients)])


def compare(rank, processes, file):
    dist.init_process_group("gloo")
    found = {}
    for backbone in RECURRENT:
        right, model, neighbours = learn(model_of(backbone), long_row()), model_of(backbone), SequenceParallelGroup(processes)
        checkpoint_blocks(model)
        read_together(model.backbone, neighbours)
        mine = learn(model, with_equal_frames(neighbours.share(long_row()), model))
        neighbours.finish()
        dist.all_reduce(mine)
        found[f"{backbone} on {processes}"] = [float((mine[0] - right[0]).abs() / right[0]),
                                               float((mine[1:] - right[1:]).norm() / right[1:].norm())]
    if rank == 0:
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    for name in RECURRENT:
        BACKBONE.get(name)
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in (2, 4):
            file = Path(folder, "found.json")
            if not fork(lambda rank, processes=processes, file=file: compare(rank, processes, file), processes):
                sys.exit("a rank failed")
            told |= json.loads(file.read_text())
    sys.stdout.write(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)
