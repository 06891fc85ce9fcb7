import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from aurora.errors import AuroraError
from aurora.training.checkpoint import io
from aurora.training.checkpoint.io import RESTORE, AuroraCheckpointIO
from aurora.training.checkpoint.layout import (
    KEPT_CHECKPOINTS,
    by_age,
    checkpoint_path,
    newest_checkpoint,
    problem,
    read_checkpoint,
    refuse_unsafe_loading,
    sweep,
)


def silent(message):
    raise AssertionError(message)


def tensors(step):
    return {"weights.w": torch.full((1000,), float(step)), "optimizer.exp_avg.w": torch.ones(10, 2).bfloat16() * step}


def save(writer, folder, step, given=None):
    writer.save_checkpoint({"state_dict": given or tensors(step), "global_step": step}, checkpoint_path(folder, step))


def asynchronous(report=silent):
    writer = AuroraCheckpointIO(report=report)
    writer.start()
    return writer


def write(folder, *steps):
    writer = asynchronous()
    for step in steps:
        save(writer, folder, step)
        for old in [path for path in by_age(folder) if path.name != f"step-{step}"][KEPT_CHECKPOINTS - 1 :]:
            writer.remove_checkpoint(old)
    writer.teardown()


def weights(checkpoint):
    found = {"weights.w": torch.zeros(1000), "optimizer.exp_avg.w": torch.zeros(10, 2).bfloat16()}
    checkpoint.load(found, None)
    return found


def shard(folder, step):
    return next(checkpoint_path(folder, step).glob("shard-*"))


def test_the_newest_checkpoint_is_read_back(tmp_path):
    write(tmp_path, 9, 10)
    found = newest_checkpoint(tmp_path, silent)
    assert (found.step, (tmp_path / "newest").read_text()) == (10, "step-10")
    assert all(torch.equal(tensor, tensors(10)[name]) for name, tensor in weights(found).items())
    assert found.shapes() == {name: tuple(tensor.shape) for name, tensor in tensors(0).items()}
    assert read_checkpoint(checkpoint_path(tmp_path, 9)).step == 9


def test_two_checkpoints_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "step-2", "step-3"]


def test_what_is_saved_is_what_the_tensors_were_when_it_was_asked_for(tmp_path):
    writer, given = asynchronous(), tensors(1)
    save(writer, tmp_path, 1, given)
    given["weights.w"].fill_(99)
    writer.finish()
    assert weights(newest_checkpoint(tmp_path, silent))["weights.w"].eq(1).all()


def test_large_checkpoints_are_cut_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "FILE_BYTES", 3000)
    write(tmp_path, 1)
    assert len(list(checkpoint_path(tmp_path, 1).glob("shard-*"))) == 2
    assert weights(newest_checkpoint(tmp_path, silent))["weights.w"].eq(1).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_falls_back_to_the_checkpoint_before(tmp_path, share):
    write(tmp_path, 1, 2)
    path = shard(tmp_path, 2)
    os.truncate(path, int(path.stat().st_size * share))
    reported = []
    assert newest_checkpoint(tmp_path, reported.append).step == 1
    assert "step-2 is broken" in reported[0] and "bytes, not" in reported[0]


@pytest.mark.parametrize("name", ["shard", "state.json"])
def test_a_flipped_bit_falls_back_to_the_checkpoint_before(tmp_path, name):
    write(tmp_path, 1, 2)
    path = shard(tmp_path, 2) if name == "shard" else checkpoint_path(tmp_path, 2) / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert newest_checkpoint(tmp_path, lambda _: None).step == 1
    # only the first rank reads the weights
    assert newest_checkpoint(tmp_path, lambda _: None, verify=False).step == (2 if name == "shard" else 1)


@pytest.mark.parametrize("lost", ["shard", "state.json", "COMMITTED"])
def test_a_checkpoint_that_is_half_deleted_is_none_and_what_that_costs_is_said(tmp_path, lost):
    write(tmp_path, 1, 3)
    (shard(tmp_path, 3) if lost == "shard" else checkpoint_path(tmp_path, 3) / lost).unlink()
    reported = []
    assert newest_checkpoint(tmp_path, reported.append).step == 1
    assert str(checkpoint_path(tmp_path, 3)) in reported[0] and "2 steps are lost" in reported[1]


def test_a_checkpoint_that_reads_back_wrong_keeps_the_older_ones(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)
    commit = io._commit

    def damaging(path, files):
        commit(path, files)
        shard(tmp_path, 3).write_bytes(b"x" * shard(tmp_path, 3).stat().st_size)

    monkeypatch.setattr(io, "_commit", damaging)
    reported = []
    writer = asynchronous(reported.append)
    save(writer, tmp_path, 3)
    with pytest.raises(AuroraError, match="is not what was written"):
        writer.finish()
    assert "step-3 could not be written" in reported[0]
    assert newest_checkpoint(tmp_path, lambda _: None).step == 2 and checkpoint_path(tmp_path, 1).exists()


def test_only_broken_checkpoints_are_an_error(tmp_path):
    write(tmp_path, 1)
    shard(tmp_path, 1).write_bytes(b"nothing")
    with pytest.raises(AuroraError, match="none of the checkpoints"):
        newest_checkpoint(tmp_path, lambda _: None)


def test_checkpoints_that_have_all_lost_their_markers_are_an_error_and_no_fresh_start(tmp_path):
    write(tmp_path, 1, 2)
    for marker in tmp_path.glob("*/COMMITTED"):
        marker.unlink()
    with pytest.raises(AuroraError, match="none of the checkpoints"):
        newest_checkpoint(tmp_path, lambda _: None)


@pytest.mark.parametrize("pointer", [b"", b"step-", b"\xff\xfe", b"step-1"])
def test_a_pointer_that_is_broken_or_behind_changes_nothing(tmp_path, pointer):
    write(tmp_path, 1, 2)
    (tmp_path / "newest").write_bytes(pointer)
    assert newest_checkpoint(tmp_path, silent).step == 2


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none", silent) is None
    with pytest.raises(AuroraError, match="same folder"):
        read_checkpoint(checkpoint_path(tmp_path, 3))


def test_a_checkpoint_under_the_name_of_another_is_broken(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 7))
    reported = []
    assert newest_checkpoint(tmp_path, reported.append).path == checkpoint_path(tmp_path, 1)
    assert "step-7 is broken (its state is that after step 1)" in reported[0]


def test_what_a_killed_save_left_is_swept_and_nothing_else(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2))
    (checkpoint_path(tmp_path, 2) / "COMMITTED").unlink()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "step-1"]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    write(tmp_path, 1)
    files = {path.name for path in checkpoint_path(tmp_path, 1).iterdir()}
    assert files == {"COMMITTED", "state.json", "shard-00001-model-00001-of-00001.safetensors"}


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"shard": 1}', '{"../../x": [1, "y"]}'])
def test_a_damaged_marker_is_a_broken_checkpoint(tmp_path, text):
    write(tmp_path, 1)
    (checkpoint_path(tmp_path, 1) / "COMMITTED").write_text(text)
    assert problem(checkpoint_path(tmp_path, 1)) is not None


def test_unsafe_loading_is_refused(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(AuroraError, match="Unset it"):
        refuse_unsafe_loading()


def test_a_rank_that_was_lost_while_saving_is_not_an_error_of_the_user(tmp_path, monkeypatch):
    def lost(self, *given):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(AuroraCheckpointIO, "_write", lost)
    writer = asynchronous(lambda message: None)
    save(writer, tmp_path, 1)
    with pytest.raises(RuntimeError, match="could not be written: Connection closed by peer"):
        writer.finish()


def test_training_tolerates_one_save_that_fails_and_stops_at_the_second(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    reported = []
    writer = asynchronous(reported.append)
    save(writer, file, 1)
    save(writer, file, 2)
    with pytest.raises(AuroraError, match="2 checkpoints in a row could not be written"):
        save(writer, file, 3)
    assert len(reported) == 2


def test_an_older_checkpoint_stays_when_the_newer_could_not_be_written(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(io, "_commit", lambda path, files: 1 / 0)
    writer = asynchronous(lambda message: None)
    save(writer, tmp_path, 2)
    writer.remove_checkpoint(checkpoint_path(tmp_path, 1))
    with pytest.raises(AuroraError, match="division"):
        writer.finish()
    assert newest_checkpoint(tmp_path, silent).step == 1


def test_without_a_running_trainer_a_checkpoint_is_whole_when_saving_returns(tmp_path):
    save(AuroraCheckpointIO(report=silent), tmp_path, 1)
    assert problem(checkpoint_path(tmp_path, 1)) is None


def test_what_is_loaded_is_what_was_saved_and_paths_move_with_the_folder(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    saved = {"global_step": 1, "best": str(here / "step-1"), "betas": (0.9, 0.99), "score": torch.tensor(0.1),
             "milestones": {3: 1}, "none": None}
    AuroraCheckpointIO(report=silent).save_checkpoint({**saved, "state_dict": tensors(1)}, here / "step-1")
    here.rename(there)
    loaded = AuroraCheckpointIO(report=silent).load_checkpoint(there / "step-1")
    assert loaded[RESTORE].step == 1 and loaded["state_dict"] == {}
    assert {name: loaded[name] for name in saved} == {**saved, "best": str(there / "step-1")}


@pytest.mark.parametrize(("path", "message"), [("absent", "there is no checkpoint"), ("folder", "has no COMMITTED")])
def test_what_is_not_a_checkpoint_is_refused_with_what_would_be(tmp_path, path, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(AuroraError, match=message):
        AuroraCheckpointIO(report=silent).load_checkpoint(tmp_path / path)


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs a full device")
def test_a_full_disk_is_told_and_leaves_the_older_checkpoint(tmp_path):
    write(tmp_path, 1)
    reported = []
    writer = asynchronous(reported.append)
    path = checkpoint_path(tmp_path, 2)
    begin = io._begin

    def full(folder, state):
        begin(folder, state)
        (path / "shard-00001-model-00001-of-00001.safetensors").symlink_to("/dev/full")

    io._begin = full
    try:
        save(writer, tmp_path, 2)
        with pytest.raises(AuroraError, match="No space left"):
            writer.finish()
    finally:
        io._begin = begin
    assert "No space left" in reported[0] and newest_checkpoint(tmp_path, silent).step == 1


@pytest.mark.process
def test_a_kill_in_the_middle_of_saving_leaves_a_readable_checkpoint(tmp_path):
    code = f"""
from pathlib import Path
import torch
from aurora.training.checkpoint.io import AuroraCheckpointIO
writer, folder = AuroraCheckpointIO(report=print), Path({str(tmp_path)!r})
writer.start()
for step in range(1, 100_000):
    checkpoint = {{"state_dict": {{"weights.w": torch.full((400_000,), float(step))}}, "global_step": step}}
    writer.save_checkpoint(checkpoint, folder / f"step-{{step}}")
    writer.remove_checkpoint(folder / f"step-{{step - 2}}")
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
        tensor = {"weights.w": torch.zeros(400_000)}
        found.load(tensor, None)
        assert tensor["weights.w"].eq(found.step).all()
        assert json.loads((found.path / "COMMITTED").read_text())


def newest_step(folder):
    return max((int(path.parent.name[5:]) for path in folder.glob("step-*/COMMITTED")), default=0)
