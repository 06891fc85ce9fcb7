import hashlib
import json
import signal
import time
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

from aurora.errors import AuroraError
from aurora.training.callbacks.progress import ProgressLines
from aurora.training.checkpoint.layout import CHECKPOINTS, checkpoint_path, is_committed, newest_checkpoint
from aurora.weights.model_folder import load_model
from tools.tiny_training import MadeRows, curve, tiny_config, train

STEPS = 8


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of both stages in one go."""
    run = tmp_path_factory.mktemp("uninterrupted")
    train({**tiny_config(run, steps=STEPS), "stage": "all"})
    return run


@pytest.fixture
def config(tmp_path, uninterrupted):
    """The second stage, in a run of its own, from the same first one."""
    return {**tiny_config(tmp_path / "run", steps=STEPS), "init_from": str(uninterrupted / "first" / "model")}


def assert_same_run(run, uninterrupted):
    assert curve(run) == curve(uninterrupted)
    model = Path("second", "model", "model.safetensors")
    assert Path(run, model).read_bytes() == Path(uninterrupted, model).read_bytes()


def test_sigterm_saves_within_the_row_and_exits_143(config, uninterrupted, start_process):
    config["trainer"]["checkpoint_every"] = 1000
    process = start_process(config, SECONDS_PER_ROW="0.1")
    while curve(config["run"]) == [] and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143, said
    assert "stopped by SIGTERM after step" in said and "Traceback" not in said
    done = len(curve(config["run"]))
    saved = {path.name for path in (Path(config["run"]) / "second" / "checkpoints").iterdir()}
    assert saved == {"newest", "step-0", f"step-{done}"}
    assert done < STEPS
    train(config)
    assert_same_run(config["run"], uninterrupted)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end", "on_validation_start",
                                  "on_train_epoch_end", "on_train_end"])
def test_an_error_around_a_step_loses_neither_the_step_nor_its_line(config, uninterrupted, monkeypatch, hook):
    """As when a callback fails, or another process is lost there."""
    # a callback of ours stands for one of the user's
    whole = getattr(ProgressLines, hook, getattr(Callback, hook))

    def fail(self, trainer, *arguments):
        if trainer.global_step == (STEPS if "end" in hook and "batch" not in hook else 4):
            raise RuntimeError("lost")
        whole(self, trainer, *arguments)

    config["trainer"]["checkpoint_every"] = 1000
    config["stages"]["second"]["validation"] = {"mixture": {"rows": 1}, "every": 4, "max_steps": 1}
    monkeypatch.setattr(ProgressLines, hook, fail, raising=False)
    with pytest.raises(RuntimeError, match="lost"):
        train(config)
    monkeypatch.undo()
    step = STEPS if "end" in hook and "batch" not in hook else 4
    assert is_committed(checkpoint_path(Path(config["run"], "second", CHECKPOINTS), step))
    train(config)
    assert_same_run(config["run"], uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("row", [5, 14, 15])
def test_an_exception_in_the_middle_of_a_step_loses_nothing_before_it(config, uninterrupted, monkeypatch, row):
    config["trainer"]["checkpoint_every"] = 1000
    monkeypatch.setattr(MadeRows, "breaks_at", row)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(config)
    monkeypatch.setattr(MadeRows, "breaks_at", None)
    assert (Path(config["run"]) / "second" / "checkpoints" / f"step-{row // 4}" / "COMMITTED").exists()
    train(config)
    assert_same_run(config["run"], uninterrupted)


@pytest.mark.slow
def test_a_broken_newest_checkpoint_costs_only_the_steps_after_the_one_before(config, uninterrupted, monkeypatch,
                                                                             capfd):
    monkeypatch.setattr(MadeRows, "breaks_at", 21)
    with pytest.raises(RuntimeError):
        train(config)
    monkeypatch.setattr(MadeRows, "breaks_at", None)
    shard = next((Path(config["run"]) / "second" / "checkpoints" / "step-5").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    train(config)
    said = capfd.readouterr().out
    assert "step-5 is broken" in said and "resuming after step 4" in said
    assert_same_run(config["run"], uninterrupted)


@pytest.mark.slow
def test_a_run_killed_between_its_last_checkpoint_and_its_model_writes_the_model(config, uninterrupted):
    train(config)
    folder = Path(config["run"]) / "second"
    (folder / "done.json").unlink()
    train(config)
    assert_same_run(config["run"], uninterrupted)
    assert (folder / "done.json").exists()


def test_a_run_cannot_be_resumed_with_another_configuration(config, monkeypatch):
    monkeypatch.setattr(MadeRows, "breaks_at", 9)
    with pytest.raises(RuntimeError):
        train(config)
    config["stages"]["second"]["betas"] = [0.9, 0.95]
    config["seed"] = 5
    with pytest.raises(AuroraError, match=r"begun with another .*seed was 3, is 5; stages\.second\.betas was "):
        train(config)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_with_is_refused_with_the_ways_out(config, monkeypatch):
    monkeypatch.setattr(MadeRows, "breaks_at", 9)
    with pytest.raises(RuntimeError):
        train(config)
    for state in Path(config["run"]).rglob("state.json"):
        written = json.dumps(json.loads(state.read_bytes()) | {"hyper_parameters": {}}).encode()
        state.write_bytes(written)
        committed = state.with_name("COMMITTED")
        digest = [len(written), hashlib.sha256(written).hexdigest()]
        committed.write_text(json.dumps(json.loads(committed.read_bytes()) | {"state.json": digest}))
    with pytest.raises(AuroraError, match=r"step-2 does not say .* restart=true begins the stage again"):
        train(config)


def test_checkpoints_leave_out_what_is_frozen(tmp_path):
    train({**tiny_config(tmp_path, steps=1), "stage": "first"})
    stored = newest_checkpoint(tmp_path / "first" / "checkpoints", print).shapes()
    connector = dict(load_model(tmp_path / "first" / "model")[0].named_parameters(prefix=""))
    assert {name.removeprefix("weights.") for name in stored if name.startswith("weights.")} == {
        name for name in connector if name.startswith("connector.")}
