import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from aurora.errors import AuroraError
from aurora.training.checkpoints import (
    checkpoint_path,
    newest_checkpoint,
    problem,
    refuse_unsafe_loading,
    write_checkpoint,
)


def silent(message):
    raise AssertionError(message)


def write(folder, *steps):
    for step in steps:
        write_checkpoint(folder, step, {"step": step, "weights": {"w": torch.full((1000,), float(step))}})


def test_the_newest_checkpoint_is_read_back(tmp_path):
    write(tmp_path, 9, 10)
    found = newest_checkpoint(tmp_path, silent)
    assert found["step"] == 10 and found["weights"]["w"].eq(10).all()


def test_two_checkpoints_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2.ckpt", "step-3.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, share):
    write(tmp_path, 1, 2)
    path = checkpoint_path(tmp_path, 2)
    os.truncate(path, int(path.stat().st_size * share))
    told = []
    assert newest_checkpoint(tmp_path, told.append)["step"] == 1
    assert "step-2.ckpt is broken" in told[0]


def test_a_flipped_bit_falls_back_to_the_one_before(tmp_path):
    write(tmp_path, 1, 2)
    path = checkpoint_path(tmp_path, 2)
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.tensor(2.0).numpy().tobytes() * 4) + 40] ^= 1
    path.write_bytes(raw)
    assert newest_checkpoint(tmp_path, lambda _: None)["step"] == 1


def test_a_broken_newer_checkpoint_keeps_the_older_ones(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)
    monkeypatch.setattr("aurora.training.checkpoints.problem", lambda path: "no room")
    write(tmp_path, 3)
    assert checkpoint_path(tmp_path, 1).exists() and checkpoint_path(tmp_path, 2).exists()


def test_only_broken_checkpoints_are_an_error(tmp_path):
    checkpoint_path(tmp_path, 1).write_bytes(b"nothing")
    with pytest.raises(AuroraError, match="none of the checkpoints"):
        newest_checkpoint(tmp_path, lambda _: None)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path, silent) is None


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"step": Evil()}, checkpoint_path(tmp_path, 1))
    assert problem(checkpoint_path(tmp_path, 1)) is not None
    assert not (tmp_path / "ran").exists()


def test_unsafe_loading_is_refused(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(AuroraError, match="Unset it"):
        refuse_unsafe_loading()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    checkpoint_path(tmp_path, 1).mkdir()
    with pytest.raises(AuroraError, match="could not be written"):
        write(tmp_path, 1)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_kill_in_the_middle_of_saving_leaves_a_readable_checkpoint(tmp_path):
    code = f"""
from pathlib import Path
import torch
from aurora.training.checkpoints import write_checkpoint
for step in range(1, 100_000):
    write_checkpoint(Path({str(tmp_path)!r}), step, {{"step": step, "w": torch.full((400_000,), float(step))}})
"""
    for pause in (0.003, 0.017):
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
        before = newest_step(tmp_path)
        while newest_step(tmp_path) in (before, 0) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = newest_checkpoint(tmp_path, silent)
        assert found["w"].eq(found["step"]).all()
        assert not list(tmp_path.glob(".*.tmp"))


def newest_step(folder):
    return max((int(path.stem[5:]) for path in folder.glob("step-*.ckpt")), default=0)
