"""A tiny whole configuration and rows made from numbers, for tests of training. Run as a script it trains:

    python -m tools.tiny_training CONFIG.json
    python -m tools.tiny_training CASES.json    [{"config": {...}, "processes": 4, "stops_at": 2}, ...] in order

Processes of a case fork from one that has imported everything. A case that stops before its last step leaves a
checkpoint, from which a later one of the same run goes on.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from aurora.assemble import build_model
from aurora.config import Config, ModelConfig
from aurora.errors import TRY_AGAIN, AuroraError, LostProcess
from aurora.interfaces import DataModule
from aurora.model import AuroraModel
from aurora.options import read_fields
from aurora.recipe import Recipe
from aurora.registry import BACKBONE, CONNECTOR, DATA, VISION
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.module import AuroraModule
from aurora.training.run import train as train_config
from aurora.training.stage import Stage
from aurora.training.stage import plan_stages as plan
from aurora.types import IGNORE, Frames, PackedBatch, Position

SIZE, PATCH, KEEP = 16, 8, 2
HELD_OUT = 5_000  # the first row that is not learned from
ROOT = Path(__file__).parents[1]

Tree = dict[str, Any]  # a config as a plain mapping


# ---- data ------------------------------------------------------------------------------------------------------


class MadeRows(DataModule, L.LightningDataModule):  # type: ignore[misc]
    """Rows of two sequences, with a frame in two of three; a step is `rows_per_step` rows over all ranks.

    What a row holds is a function of the seed and its number. In between come the faults that a test asks for: the
    pixels of the rows in `poisoned` are NaN, reading row `breaks_at` raises, no rows follow step `stops_at`, and
    the environment may ask for more: SECONDS_PER_ROW; rows that are POISONED, at which reading BREAKS, HANGS, LOCKS the
    interpreter, gets a SIGTERM or LEAPS in loss; and a file READ_LOG to which step and number of every row are written.
    Rows to validate on are others than those to learn from, have no fault but SECONDS_PER_HELD_OUT_ROW, and leave a
    file `reading` in their folder while they are read.
    """

    poisoned: Sequence[int] = ()
    breaks_at: int | None = None
    stops_at: int | None = None

    def __init__(self, *, seed: int, layout: Any, tokenizer: Any, prompt: Any, quarantine: str | None = None,
                 steps: int = 6, rows_per_step: int = 4, framed: bool = True, row_tokens: int = 4096,
                 mixture: Any = None) -> None:
        """`row_tokens` is the length of a row that others reckon with; rows are as they are, whatever the mixture."""
        super().__init__()
        self.folder = None if quarantine is None else Path(quarantine).parent
        self.seed, self.layout, self.prompt = seed, layout, prompt
        self.vocab = tokenizer.vocab_size
        self.steps, self.rows_per_step, self.framed = steps, rows_per_step, framed

    def steps_per_epoch(self) -> int:
        return self.steps

    def rows(self, position: Position, *, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        if self.folder is not None and self.folder.parent.name == "validation":
            yield from self._held_out(self.folder, steps, rank, world)
            return
        first = position[0] * self.steps + position[1]
        for step in range(first, first + steps):
            if step == self.stops_at:
                return
            for first_row in range(0, self.rows_per_step, world):
                time.sleep(float(os.environ.get("SECONDS_PER_ROW", 0)))
                number, last = step * self.rows_per_step + first_row + rank, first_row + world == self.rows_per_step
                if number == self.breaks_at or number in rows_that("BREAK"):
                    raise RuntimeError("the disk is gone")
                if "READ_LOG" in os.environ:
                    with open(f"{os.environ['READ_LOG']}-{os.getpid()}", "a") as log:
                        log.write(f"{step} {number}\n")
                if number in rows_that("SIGTERM"):
                    os.kill(os.getpid(), signal.SIGTERM)
                if number in rows_that("HANG"):
                    time.sleep(1000)
                if number in rows_that("LOCK"):
                    ctypes.PyDLL(None).sleep(1000)
                yield self.row(number)._replace(closes_step=last, position=(0, step + last, 0))

    def _held_out(self, folder: Path, steps: int, rank: int, world: int) -> Iterator[PackedBatch]:
        folder.mkdir(parents=True, exist_ok=True)
        reading = folder / f"reading-{rank}"
        reading.touch()
        try:
            for step in range(steps):
                for first_row in range(0, self.rows_per_step, world):
                    time.sleep(float(os.environ.get("SECONDS_PER_HELD_OUT_ROW", 0)))
                    number = HELD_OUT + step * self.rows_per_step + first_row + rank
                    yield self.row(number)._replace(closes_step=first_row + world == self.rows_per_step)
        finally:
            reading.unlink()

    def row(self, number: int) -> PackedBatch:
        generator = torch.Generator().manual_seed(self.seed * 10_000 + number)
        lengths = torch.randint(4, 9, (2,), generator=generator).tolist()
        tokens = torch.randint(1, min(self.vocab, 200), (sum(lengths),), generator=generator)
        targets = torch.where(torch.arange(len(tokens)) % 3 == 0, IGNORE, (tokens * 7) % 50)
        if number in rows_that("LEAP"):
            targets = torch.where(targets == IGNORE, IGNORE, 250)
        frames: tuple[Frames, ...] = ()
        if self.framed and number % 3 != 2:
            pixels = torch.randint(0, 256, (1, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
            if number in self.poisoned or number in rows_that("POISON"):
                pixels = torch.full(pixels.shape, torch.nan)
            frames = (Frames(pixels, torch.arange(1, 1 + KEEP).unsqueeze(0)),)
            tokens[1 : 1 + KEEP] = 0
        return PackedBatch(tokens, targets, torch.tensor([0, lengths[0], sum(lengths)]), frames, 2)


def rows_that(fault: str) -> set[int]:
    """The numbers of the rows that the environment asks a fault of, such as HANG=4,9."""
    return {int(number) for number in os.environ.get(fault, "").split(",") if number}


def long_row() -> PackedBatch:
    """Two sequences, 7 and 23 positions long; the second holds frames of KEEP tokens from position 9 on."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 200, (30,), generator=generator)
    targets = torch.where(torch.arange(30) % 3 == 0, IGNORE, tokens % 50)
    positions = 9 + torch.arange(4 * KEEP).view(4, KEEP)
    tokens[positions.flatten()] = 0
    pixels = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return PackedBatch(tokens, targets, torch.tensor([0, 7, 30]), (Frames(pixels, positions),), 2)


def register() -> None:
    """Makes `data: {name: made_rows}` known."""
    if "made_rows" not in DATA.known():
        DATA.add("made_rows", MadeRows)


# ---- configuration ---------------------------------------------------------------------------------------------


def tiny_config(run: str | Path, **data: Any) -> Tree:
    """Four patches per frame, half of them kept; connector, then everything."""
    recipe = {"mixture": {"rows": 1}, "prompt": None, "keep_ratio": 0.5, "peak_lr": 1e-2, "global_batch": 8,
              "epochs": 1, "warmup_ratio": 0.2}
    return {
        "vision": {"name": "siglip", "image_size": SIZE, "patch_size": PATCH, "width": 16, "layers": 3, "heads": 2,
                   "mlp_width": 32},
        "merge": {"name": "tome"},
        "sort": {"name": "size"},
        "connector": {"name": "mlp"},
        "backbone": {"name": "rwkv6", "hidden_size": 16, "layers": 2, "head_size": 8},
        "tokenizer": {"name": "bytes"},
        "prompt": {"name": "sandwich"},
        "reader": {"name": "pyav"},
        "data": {"name": "made_rows", **data},
        "stages": {
            "second": {**recipe, "after": "first", "trained": ["vision", "connector", "backbone"]},
            "first": {**recipe, "after": None, "trained": ["connector"]},
        },
        "trainer": {"threads": 1, "checkpoint_every": 1, "progress": "lines", "progress_seconds": 0.0},
        "logger": {"csv": {"_target_": "aurora.training.callbacks.csv_logger.CsvLogger"}},
        "run": str(run), "stage": "second", "init_from": None, "restart": False, "seed": 3, "dtype": "float32",
        "keep_ratio": 0.5, "sampling": {"fps": 1.0}, "base_weights": {},
    }


def tiny_model(**changes: Any) -> AuroraModel:
    """The model of the tiny config, with other parts or options."""
    return build_model(ModelConfig.parse(tiny_config("run") | changes))


def tiny_recipe(stage: str = "first", **changes: Any) -> Recipe:
    """The recipe of a stage of the tiny config, with other options."""
    return read_fields(Recipe, f"stages.{stage}", tiny_config("run")["stages"][stage] | changes)


def train(tree: Tree) -> Path:
    """`aurora train` of a plain config."""
    return train_config(Config.parse(tree))


def plan_stages(tree: Tree, *arguments: Any, **options: Any) -> list[Stage]:
    """The stages that a plain config selects, checked."""
    return plan(Config.parse(tree), *arguments, **options)


def curve(run: str | Path, stage: str = "second") -> list[tuple[int, str]]:
    """(step, loss) of a stage, exactly as written."""
    return [(int(row["step"]), row["loss"]) for row in read_metrics(Path(run) / stage)]


def note_rows(path: str) -> None:
    """Makes training write a line for every row that it is given: the step, and what the row holds."""
    learn = AuroraModule.learn

    def noted(self: AuroraModule, row: PackedBatch) -> None:
        tensors = [row.tokens, row.targets, row.cu_seqlens, *(part for frames in row.frames for part in frames[:2])]
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
        with open(path, "a") as log:
            log.write(f"{self.trainer.global_step} {digest}\n")
        learn(self, row)

    AuroraModule.learn = noted  # type: ignore[method-assign]


# ---- processes -------------------------------------------------------------------------------------------------

# Processes that begin where everything is imported already: they start in a tenth of a second.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tools.tiny_training", "components.backbone.rwkv6", "components.vision.siglip",
                                "components.tokenizer.bytes"])
Process = multiprocessing.context.ForkServerProcess


def start(config: Tree, log: str | Path, *, cwd: str | Path = ".", **environment: str) -> Process:
    """Trains in a process of its own, in the folder `cwd`, that writes what it says to `log`.

    SET="package.module.NAME=2.0" in the environment sets a number of a module there; ROW_LOG notes rows.
    """
    # only here: the server that forks is started with the environment of this moment
    os.environ["PYTHONPATH"] = str(ROOT)
    process = CONTEXT.Process(target=_train, args=(config, str(log), cwd, environment))
    process.start()
    return process


def start_ranks(config: Tree, log: str | Path, world: int, *, port: int | None = None, **environment: str
                ) -> list[Process]:
    """The same in `world` processes that train together, as torchrun would start them on one machine."""
    port, environment = port or free_port(), {"GLOO_SOCKET_IFNAME": "lo", **environment}
    return [start(config, f"{log}-{rank}", **_launched(rank, world, port) | environment) for rank in range(world)]


def _launched(rank: int, world: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives a process of one machine."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}


def exit_codes(processes: Sequence[Process]) -> list[int | None]:
    """Those of started processes, once they have ended; None for one that does not within a minute."""
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _train(config: Tree, log: str, cwd: str, environment: Mapping[str, str]) -> None:
    """Ends as `aurora train` does."""
    os.chdir(cwd)
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    warnings.simplefilter("error")
    register()
    if "ROW_LOG" in os.environ:
        note_rows(f"{os.environ['ROW_LOG']}-{os.getpid()}")
    if "SET" in os.environ:
        name, _, value = os.environ["SET"].partition("=")
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, float(value))
    try:
        train(config)
    except (AuroraError, LostProcess) as error:
        sys.stderr.write(f"aurora: error: {error}\n")
        sys.exit(TRY_AGAIN if isinstance(error, LostProcess) else 2)


def train_together(cases: list[Tree], folder: Path, *, timeout: float = 500) -> None:
    """Runs the cases of a CASES.json one after the other; they and what lies beside them go below `folder`."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    done = subprocess.run([sys.executable, "-W", "error", "-m", "tools.tiny_training", str(file)], timeout=timeout,
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


def fork(work: Callable[[int], None], processes: int) -> bool:
    """Whether `work(rank)` ended without an exception in all of so many processes, which can meet."""
    port = free_port()
    children = [_forked(work, rank, processes, port) for rank in range(processes)]
    return sum(os.waitpid(child, 0)[1] for child in children) == 0


def _forked(work: Callable[[int], None], rank: int, processes: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update(_launched(rank, processes, port))
    status = 1
    try:
        work(rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _train_case(case: Tree, rank: int) -> None:
    config, MadeRows.stops_at = case["config"], case.get("stops_at")
    if MadeRows.stops_at is not None:
        # sharded weights are not saved after an error: another rank may be anywhere
        config["trainer"]["checkpoint_every"] = MadeRows.stops_at
    try:
        train(config)
    except AuroraError as error:
        if MadeRows.stops_at is None or "the data ended after step" not in str(error):
            raise


if __name__ == "__main__":
    register()
    given = json.loads(Path(sys.argv[1]).read_text())
    if isinstance(given, dict):
        train(given)
    else:
        for slot, name in ((BACKBONE, "rwkv6"), (VISION, "siglip"), (CONNECTOR, "mlp")):
            slot.get(name)
        ended = [fork(partial(_train_case, case), case["processes"]) for case in given]
        sys.exit(not all(ended))
