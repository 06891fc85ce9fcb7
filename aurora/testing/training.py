"""A tiny whole configuration and rows made from numbers, for tests of training; run as a script it trains."""

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch

from aurora.config import Config
from aurora.errors import TRY_AGAIN, AuroraError, LostProcess
from aurora.interfaces import DataModule
from aurora.registry import DATA
from aurora.types import IGNORE, Frames, PackedBatch

SIZE, PATCH, KEEP = 16, 8, 2
HELD_OUT = 5_000  # the first row that is not learned from


class MadeRows(DataModule, L.LightningDataModule):
    """Rows of two sequences, with a frame in two of three; a step is `rows_per_step` rows over all ranks.

    What a row holds is a function of the seed and its number. In between come the faults that a test asks for: the
    pixels of the rows in `poisoned` are no numbers, reading row `breaks_at` raises, no rows follow step `stops_at`, and
    the environment may ask for more: SECONDS_PER_ROW; rows that are POISONED, at which reading BREAKS, HANGS, LOCKS the
    interpreter, gets a SIGTERM or LEAPS in loss; and a file READ_LOG to which step and number of every row are written.
    Rows to validate on are others than those to learn from, know of no fault but SECONDS_PER_HELD_OUT_ROW, and leave a
    file `reading` in their folder while they are read.
    """

    poisoned = ()
    breaks_at = None
    stops_at = None

    def __init__(self, *, seed, layout, tokenizer, prompt, quarantine=None, steps=6, rows_per_step=4, framed=True,
                 row_tokens=4096, mixture=None):
        """`row_tokens` is what others are told of the length of a row; rows are as they are, whatever the mixture."""
        super().__init__()
        self.folder = None if quarantine is None else Path(quarantine).parent
        self.seed, self.layout, self.prompt = seed, layout, prompt
        self.vocab = tokenizer.vocab_size
        self.steps, self.rows_per_step, self.framed = steps, rows_per_step, framed

    def steps_per_epoch(self):
        return self.steps

    def total_steps(self):
        return self.steps

    @property
    def epochs(self):
        return 1

    def rows(self, position, *, steps, rank, world):
        if self.folder is not None and self.folder.parent.name == "validation":
            yield from self._held_out(steps, rank, world)
            return
        first = position[0] * self.steps + position[1]
        for step in range(first, first + steps):
            if step == self.stops_at:
                return
            for turn in range(0, self.rows_per_step, world):
                time.sleep(float(os.environ.get("SECONDS_PER_ROW", 0)))
                number, last = step * self.rows_per_step + turn + rank, turn + world == self.rows_per_step
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

    def _held_out(self, steps, rank, world):
        self.folder.mkdir(parents=True, exist_ok=True)
        reading = self.folder / f"reading-{rank}"
        reading.touch()
        try:
            for step in range(steps):
                for turn in range(0, self.rows_per_step, world):
                    time.sleep(float(os.environ.get("SECONDS_PER_HELD_OUT_ROW", 0)))
                    number = HELD_OUT + step * self.rows_per_step + turn + rank
                    yield self.row(number)._replace(closes_step=turn + world == self.rows_per_step)
        finally:
            reading.unlink()

    def row(self, number):
        generator = torch.Generator().manual_seed(self.seed * 10_000 + number)
        lengths = torch.randint(4, 9, (2,), generator=generator).tolist()
        tokens = torch.randint(1, min(self.vocab, 200), (sum(lengths),), generator=generator)
        targets = torch.where(torch.arange(len(tokens)) % 3 == 0, IGNORE, (tokens * 7) % 50)
        if number in rows_that("LEAP"):
            targets = torch.where(targets == IGNORE, IGNORE, 250)
        frames = ()
        if self.framed and number % 3 != 2:
            pixels = torch.randint(0, 256, (1, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
            if number in self.poisoned or number in rows_that("POISON"):
                pixels = torch.full(pixels.shape, torch.nan)
            frames = (Frames(pixels, torch.arange(1, 1 + KEEP).unsqueeze(0)),)
            tokens[1 : 1 + KEEP] = 0
        return PackedBatch(tokens, targets, torch.tensor([0, lengths[0], sum(lengths)]), frames, 2)


def rows_that(fault):
    """The numbers of the rows that the environment asks a fault of, such as HANG=4,9."""
    return {int(number) for number in os.environ.get(fault, "").split(",") if number}


def register():
    """Makes `data: {name: made_rows}` known."""
    if "made_rows" not in DATA.known():
        DATA.add("made_rows", MadeRows)


def tiny_config(run, **data):
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


def train(tree):
    """`aurora train` of a plain config."""
    from aurora.training import run

    return run.train(Config.parse(tree))


def plan_stages(tree, *arguments, **options):
    """The stages that a plain config selects, checked."""
    from aurora.training import stage

    return stage.plan_stages(Config.parse(tree), *arguments, **options)


def curve(run, stage="second"):
    """(step, loss) of a stage, exactly as written."""
    from aurora.training.callbacks.csv_logger import read_metrics

    return [(int(row["step"]), row["loss"]) for row in read_metrics(Path(run) / stage)]


# Processes that begin where everything is imported already: they start in a tenth of a second.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["aurora.testing.training", "aurora.training.run", "components.backbone.rwkv6",
                                "components.vision.siglip", "components.tokenizer.bytes"])


def start(config, log, *, cwd=".", **environment):
    """Trains in a process of its own, in the folder `cwd`, that writes what it says to `log`."""
    # only here: the server that forks is started with the environment of this moment
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = CONTEXT.Process(target=_train, args=(config, str(log), cwd, environment))
    process.start()
    return process


def start_ranks(config, log, world, *, port=None, **environment):
    """The same in `world` processes that train together, as torchrun would start them on one machine."""
    told = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port or free_port()), "GLOO_SOCKET_IFNAME": "lo", **environment}
    return [start(config, f"{log}-{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **told) for rank in range(world)]


def train_together(cases, folder):
    """Runs the cases of together.py one after the other; they and what lies beside them go below `folder`."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    script, root = Path(__file__).parents[2] / "tests" / "aurora" / "training" / "together.py", Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-W", "error", str(script), str(file)], capture_output=True, text=True,
                          timeout=200, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


def exit_codes(processes):
    """Those of started processes, once they have ended; None for one that does not within a minute."""
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def note_rows(path):
    """Makes training write a line for every row that it is given: the step, and what the row holds."""
    from aurora.training.module import AuroraModule

    learn = AuroraModule.learn

    def noted(self, batch):
        tensors = [batch.tokens, batch.targets, batch.cu_seqlens, *(part for frames in batch.frames for part in frames)]
        with open(path, "a") as log:
            log.write(f"{self.trainer.global_step} {hashlib.sha256(b''.join(t.numpy().tobytes() for t in tensors)).hexdigest()}\n")
        learn(self, batch)

    AuroraModule.learn = noted


def _train(config, log, cwd, environment):
    """Ends as `aurora train` does."""
    os.chdir(cwd)
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    warnings.simplefilter("error")
    register()
    if "ROW_LOG" in os.environ:
        note_rows(f"{os.environ['ROW_LOG']}-{os.getpid()}")
    if "START_SECONDS" in os.environ:
        from datamodules.loading import supervisor

        supervisor.START_SECONDS = float(os.environ["START_SECONDS"])
    try:
        train(config)
    except (AuroraError, LostProcess) as error:
        sys.stderr.write(f"aurora: error: {error}\n")
        sys.exit(TRY_AGAIN if isinstance(error, LostProcess) else 2)


if __name__ == "__main__":
    register()
    train(json.loads(Path(sys.argv[1]).read_text()))
