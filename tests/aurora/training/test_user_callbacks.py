import json
import sys
import time
from pathlib import Path

import pytest

from aurora.errors import AuroraError
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.checkpoint.layout import CHECKPOINTS, checkpoint_path, is_committed
from aurora.weights.model_folder import load_model
from tools.tiny_training import exit_codes, plan_stages, start, start_ranks, tiny_config, train

LIGHTNING = "lightning.pytorch.callbacks."
STEPS = 12
# held-out rows teach nothing here: the loss on them falls by less than this from one validation to the next
PATIENT = {"_target_": f"{LIGHTNING}EarlyStopping", "monitor": "val_loss", "patience": 2, "min_delta": 10.0}


def config_of(run, callbacks, *, every=2, **trainer):
    config = {**tiny_config(run, steps=STEPS), "stage": "first"}
    config["trainer"].update(progress="none", callbacks=callbacks, **trainer)
    if every is not None:
        config["stages"]["first"]["validation"] = {"mixture": {"rows": 1}, "every": every, "max_steps": 1}
    return config


def steps(run, stage="first"):
    return [int(row["step"]) for row in read_metrics(Path(run) / stage)]


OWN = """
import lightning as L

class Own(L.Callback):
    def __init__(self, *, kind):
        self.kind, self.seen = kind, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.kind == "counts":
            self.log("samples_seen", float(batch.samples))
        if self.kind == "fails" and trainer.global_step == 3:
            {}["nothing"]
        last = module.global_rank == trainer.world_size - 1
        if self.kind == "stops" and last and trainer.global_step == 4:
            trainer.should_stop = True
        if self.kind == "remembers":
            self.seen.append((trainer.global_step, trainer.callback_metrics["loss"]))
            print("remembers", [float(loss) for _, loss in self.seen], flush=True)

    def state_dict(self):
        return {"made": lambda: 0} if self.kind == "unwritable" else {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

class Elsewhere(Own):
    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["mine"] = 1
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package with callbacks of its own, as pip would leave it on the path; what a config says of one."""
    folder = tmp_path / "packages"
    info = folder / "owns-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "owns.py").write_text(OWN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: owns\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aurora.callback]\nown = owns:Own\nelsewhere = owns:Elsewhere\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "owns", raising=False)
    return lambda kind, name="Own": {"mine": {"_target_": f"owns.{name}", "kind": kind}}


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """Trains in processes of their own, which find the same packages; gives where the first says what it says, too."""
    started = []

    def begin(config, world=1):
        reported = {"SECONDS_PER_ROW": "0.01"}
        log = tmp_path / f"said-{len(started)}"
        found = [start(config, f"{log}-0", **reported)] if world == 1 else start_ranks(config, log, world, **reported)
        started.extend(found)
        return found, Path(f"{log}-0")

    yield begin
    for process in started:
        if process.exitcode is None:
            process.kill()
        process.join()


# ---- stopping early


@pytest.mark.slow
def test_a_stage_ends_where_the_held_out_loss_no_longer_falls_and_the_next_one_goes_on_from_its_model(tmp_path, capfd):
    config = {**config_of(tmp_path, {"patience": PATIENT}), "stage": "all"}
    assert train(config) == tmp_path / "second" / "model"
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6] and steps(tmp_path, "second")[-1] == STEPS
    load_model(tmp_path / "first" / "model")
    said = capfd.readouterr().out
    assert "first: ended after step 6 of 12 by trainer.callbacks (patience): Monitored metric val_loss did not" in said
    assert "second: trainer.callbacks.patience acts after each validation, and this stage has none" in said
    assert "first: trainer.callbacks.patience looks" not in said
    train(config)
    assert "first: finished before" in capfd.readouterr().out


def test_a_stage_that_comes_to_its_end_was_ended_by_no_callback(tmp_path, capfd):
    train(config_of(tmp_path, {"patience": {**PATIENT, "patience": 100}}, every=STEPS, checkpoint_every=1000))
    state = checkpoint_path(tmp_path / "first" / CHECKPOINTS, STEPS) / "state.json"
    assert json.loads(state.read_text())["run"]["ended"] is False
    assert steps(tmp_path)[-1] == STEPS and "ended after" not in capfd.readouterr().out


def test_early_stopping_may_look_at_any_metric_of_the_step(tmp_path):
    train(config_of(tmp_path, {"low": {**PATIENT, "monitor": "loss", "patience": 1}}))
    assert steps(tmp_path)[-1] == 4


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(AuroraError, match=r"trainer\.callbacks\.low failed after step 2: .*`accuracy`.*`val_loss`"):
        train(config_of(tmp_path, {"low": {**PATIENT, "monitor": "accuracy"}}))


@pytest.mark.parametrize(("world", "strategy", "killed_at"), [(1, "auto", 3), (1, "auto", 6), (2, "fsdp", 4)])
def test_a_run_that_was_killed_stops_at_the_same_step(tmp_path, processes, world, strategy, killed_at):
    config = config_of(tmp_path / "run", {"patience": PATIENT}, checkpoint_every=1, strategy=strategy)
    started, said = processes(config, world)
    path = checkpoint_path(tmp_path / "run" / "first" / CHECKPOINTS, killed_at)
    while not is_committed(path) and started[0].exitcode is None:
        time.sleep(0.001)
    for process in started:
        process.kill()
    exit_codes(started)
    started, said = processes(config, world)
    assert exit_codes(started) == [0] * world, said.read_text()
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert "ended after step 6 of 12" in said.read_text() or "finished before" in said.read_text()


def test_a_callback_of_one_rank_that_stops_in_the_middle_of_a_step_ends_all_after_it(tmp_path, own, processes):
    started, said = processes(config_of(tmp_path / "run", own("stops"), every=None, strategy="ddp"), 2)
    assert exit_codes(started) == [0, 0], said.read_text()
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
    assert "first: ended after step 4 of 12 by trainer.callbacks (mine)" in said.read_text()


def test_a_stage_that_a_callback_ended_stays_so_when_its_model_was_not_written_yet(tmp_path, own, capfd):
    config = config_of(tmp_path / "run", own("stops"), every=None)
    train(config)
    (tmp_path / "run" / "first" / "done.json").unlink()
    train(config)
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
    assert capfd.readouterr().out.count("first: ended after step 4 of 12") == 2


def test_a_time_limit_ends_a_stage_in_order(tmp_path, capfd):
    timer = {"_target_": f"{LIGHTNING}Timer", "duration": {"seconds": 0}}
    train(config_of(tmp_path, {"limit": timer}, every=None))
    assert "first: ended after step 0 of 12 by trainer.callbacks (limit)" in capfd.readouterr().out


# ---- state


def test_what_a_callback_keeps_goes_through_a_stop_exactly(tmp_path, own, processes):
    config = config_of(tmp_path / "run", own("remembers"), every=None)
    started, said = processes(config)
    while not is_committed(checkpoint_path(tmp_path / "run" / "first" / CHECKPOINTS, 4)) and not started[0].exitcode:
        time.sleep(0.001)
    started[0].kill()
    exit_codes(started)
    started, said = processes(config)
    assert exit_codes(started) == [0], said.read_text()
    whole, undisturbed = processes({**config, "run": str(tmp_path / "whole")})
    assert exit_codes(whole) == [0]
    kept, expected = (path.read_text().splitlines()[-2] for path in (said, undisturbed))
    assert kept == expected and expected.count(",") == STEPS - 1


def test_callback_state_that_json_cannot_hold_is_refused_with_the_name_of_the_callback(tmp_path, own):
    with pytest.raises(AuroraError, match=r"checkpoint\.callbacks\.Own\.made is a function"):
        train(config_of(tmp_path / "run", own("unwritable"), every=None))


def test_the_state_of_a_callback_that_was_taken_away_is_warned_of(tmp_path, own):
    train(config_of(tmp_path / "run", own("remembers"), every=None))
    (tmp_path / "run" / "first" / "done.json").unlink()
    with pytest.warns(UserWarning, match="Please add the following callbacks.*Own"):
        train(config_of(tmp_path / "run", {}, every=None))


@pytest.mark.slow
def test_the_best_checkpoints_by_validation_loss_are_kept(tmp_path):
    best = {"_target_": f"{LIGHTNING}ModelCheckpoint", "dirpath": str(tmp_path / "best"), "monitor": "val_loss",
            "save_top_k": 2, "filename": "{step}"}
    train(config_of(tmp_path / "run", {"best": best}))
    losses = {int(row["step"]): float(row["val_loss"]) for row in read_metrics(tmp_path / "run" / "first")
              if row["val_loss"]}
    kept = {int(path.name.split("=")[1].removesuffix(".ckpt")) for path in (tmp_path / "best").glob("*.ckpt")}
    assert kept == set(sorted(losses, key=losses.get)[:2])


def test_a_callback_may_write_into_checkpoints(tmp_path, own):
    train(config_of(tmp_path / "run", own("", "Elsewhere"), every=None))
    state = checkpoint_path(tmp_path / "run" / "first" / CHECKPOINTS, STEPS) / "state.json"
    assert json.loads(state.read_text())["mine"] == 1


# ---- curves and errors


def test_what_callbacks_log_stands_in_the_line_of_the_last_step_taken(tmp_path, own):
    entries = {**own("counts"), "rates": {"_target_": f"{LIGHTNING}LearningRateMonitor"}}
    train(config_of(tmp_path / "run", entries, every=None))
    rows = read_metrics(tmp_path / "run" / "first")
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [float(row["samples_seen"]) for row in rows[-2:]] == [8.0, 8.0]
    # Lightning logs the rate of the step to come
    assert [float(row["lr-AdamW"]) for row in rows[:-1]] == [float(row["lr"]) for row in rows[1:]]


def test_a_callback_that_fails_is_named_and_its_traceback_kept(tmp_path, own):
    with pytest.raises(AuroraError) as caught:
        train(config_of(tmp_path / "run", own("fails"), every=None))
    kept = tmp_path / "run" / "first" / "stacks" / "rank-0.txt"
    assert f"trainer.callbacks.mine failed after step 3: KeyError: 'nothing'; {kept} has the" in str(caught.value)
    assert "in on_train_batch_end" in kept.read_text()


@pytest.mark.parametrize(("entry", "reason"), [
    ({"_target_": f"{LIGHTNING}ModelCheckpoint", "monitor": "val_loss"}, "ModelCheckpoint acts after each validation"),
    ({"_target_": f"{LIGHTNING}StochasticWeightAveraging", "swa_lrs": 0.1}, "stages.STAGE.average averages"),
    ({"_target_": f"{LIGHTNING}GradientAccumulationScheduler", "scheduling": {}}, "stages.STAGE.global_batch"),
    ({"_target_": f"{LIGHTNING}BackboneFinetuning"}, "stages.STAGE.trained says what is trained"),
    ({"_target_": f"{LIGHTNING}LambdaCallback"}, "it takes functions, which a config cannot hold"),
    (PATIENT, "EarlyStopping acts after each validation, and no stage has any"),
])
def test_what_has_no_use_here_is_refused_with_the_reason_before_anything_starts(tmp_path, own, entry, reason):
    with pytest.raises(AuroraError) as caught:
        plan_stages(config_of(tmp_path / "run", {"x": entry}, every=None))
    assert str(caught.value).startswith("trainer.callbacks.x: ") and reason in str(caught.value)


def test_a_class_that_its_package_does_not_name_as_an_entry_point_is_refused(tmp_path, own):
    with pytest.raises(AuroraError, match=r"'owns\.L\.Callback' is not allowed.* the group aurora\.callback"):
        plan_stages(config_of(tmp_path / "run", {"x": {"_target_": "owns.L.Callback"}}, every=None))


@pytest.mark.parametrize(("entry", "reason"), [
    ({"_target_": f"{LIGHTNING}Timer", "duration": "an hour"}, "'an hour'\\)` is not a valid duration"),
    ({"_target_": f"{LIGHTNING}EarlyStopping"}, "missing 1 required positional argument: 'monitor'"),
])
def test_options_that_make_no_sense_are_told_with_the_name(tmp_path, entry, reason):
    with pytest.raises(AuroraError, match=f"trainer.callbacks.x: .*{reason}"):
        train(config_of(tmp_path, {"x": entry}))
