"""Loss and gradient of a row read by several ranks, against one rank: run as a script, it prints the differences.

    python read_together.py      {"rwkv6 on 2": [loss difference, gradient difference], ...} as JSON, all relative
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from aurora.registry import BACKBONE
from aurora.training.distributed.strategies import checkpoint_blocks
from aurora.training.segments import with_equal_frames
from aurora.training.sequence_parallel import SequenceParallelGroup, read_together
from tools.tiny_training import fork, long_row, tiny_config, tiny_model

RECURRENT = [name for name in BACKBONE.known() if name not in ("hf", "transformer")]


def model_of(backbone):
    """In float64, so that only what is wrong shows; blocks recomputed and the initial state tuned."""
    torch.manual_seed(0)
    model = tiny_model(backbone={**tiny_config("run")["backbone"], "name": backbone})
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


def compare(processes, file, rank):
    dist.init_process_group("gloo")
    found = {}
    for backbone in RECURRENT:
        expected = learn(model_of(backbone), long_row())
        model, group = model_of(backbone), SequenceParallelGroup(processes)
        checkpoint_blocks(model)
        read_together(model.backbone, group)
        mine = learn(model, with_equal_frames(group.share(long_row()), model))
        group.finish()
        dist.all_reduce(mine)
        found[f"{backbone} on {processes}"] = [float((mine[0] - expected[0]).abs() / expected[0]),
                                               float((mine[1:] - expected[1:]).norm() / expected[1:].norm())]
    if rank == 0:
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    for name in RECURRENT:
        BACKBONE.get(name)
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in (2, 4):
            file = Path(folder, "found.json")
            if not fork(partial(compare, processes, file), processes):
                sys.exit("a rank failed")
            differences |= json.loads(file.read_text())
    sys.stdout.write(json.dumps(differences))
    sys.stdout.flush()
    os._exit(0)
