"""Two real processes beside what tools/simulate_scale.py says of them: collectives, bytes, size of a checkpoint."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.recipe import TrainerOptions
from aurora.training.checkpoint.io import AuroraCheckpointIO
from aurora.training.checkpoint.state import named_tensors
from aurora.training.distributed.strategies import shard
from aurora.types import Frames, PackedBatch
from tools.simulate_scale import Cluster, checkpoint_bytes, communication, gathered_bytes, unit_count

WORLD = 2
CONFIG: dict[str, Any] = {
    "vision": {"name": "siglip", "image_size": 64, "patch_size": 16, "width": 128, "layers": 5, "heads": 2,
               "mlp_width": 512},
    "merge": {"name": "tome"}, "sort": {"name": "size"}, "connector": {"name": "mlp"}, "tokenizer": {"name": "bytes"},
    "backbone": {"name": "rwkv6", "hidden_size": 128, "layers": 4, "head_size": 64}, "prompt": {"name": "sandwich"},
    "dtype": "float32",
}


class Counted(TorchDispatchMode):
    """Calls and bytes of the collectives of FSDP2 below it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.gathered, self.reduced = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "allgather" in name or "reduce_scatter" in name:
            self.calls += 1
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            largest = max(t.nbytes for t in tensors)
            if "reduce_scatter" in name:
                self.reduced += largest
            else:
                self.gathered += largest
        return func(*args, **(kwargs or {}))


def work(rank: int, folder: str) -> None:
    """One training step of one of the processes; rank 0 writes what it counted."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": Path(folder, "port").read_text()}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module")
    torch.manual_seed(0)
    model = build_model(ModelConfig.parse(CONFIG))
    shard(model, init_device_mesh("cpu", (WORLD,)), TrainerOptions())
    optimizer = torch.optim.AdamW(model.parameters())
    row = PackedBatch(torch.ones(48, dtype=torch.int64), torch.ones(48, dtype=torch.int64), torch.tensor([0, 48]),
                      (Frames(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.arange(8)[None]),), 1)
    with Counted() as counted:
        model(row).total.backward()
    optimizer.step()
    writer = AuroraCheckpointIO(report=print, group=dist.new_group(backend="gloo"))
    writer.save_checkpoint({"state_dict": named_tensors(model, optimizer, {})}, Path(folder, "checkpoints", "step-1"))
    if rank == 0:
        written = sum(path.stat().st_size for path in Path(folder, "checkpoints", "step-1").glob("shard-*"))
        Path(folder, "counted").write_text(json.dumps([counted.calls, counted.gathered, counted.reduced, written]))
    dist.barrier()
    dist.destroy_process_group()


def check() -> int:
    """Prints both; 1 when they are more than a tenth apart."""
    with torch.device("meta"):
        model = build_model(ModelConfig.parse(CONFIG))
    weights, learned = gathered_bytes(model)
    _, received = communication(model, 1, WORLD, "fsdp", Cluster())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "port").write_text(str(_free_port()))
        mp.start_processes(work, (folder,), WORLD, start_method="spawn")
        calls, gathered, reduced, written = json.loads(Path(folder, "counted").read_text())
    lines = [
        ("collectives of a row", 3 * unit_count(model), calls),
        ("bytes gathered", 2 * weights, gathered),
        ("bytes reduced", learned, reduced),
        ("bytes received by a rank", received, (gathered + reduced) * (WORLD - 1) / WORLD),
        ("bytes of a checkpoint", checkpoint_bytes(model), written),
    ]
    print("| | simulated | two processes | ratio |\n|---|---|---|---|")
    for name, expected, found in lines:
        print(f"| {name} | {expected:,.0f} | {found:,.0f} | {found / expected:.3f} |")
    return int(any(abs(found / expected - 1) > 0.1 for _, expected, found in lines))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(check())
