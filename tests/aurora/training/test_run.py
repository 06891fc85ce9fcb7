import inspect
import json
import shutil

import pytest
import torch
import yaml

from aurora.config import Config
from aurora.errors import AuroraError
from aurora.training.budget import disk
from aurora.training.checkpoint.run_folder import StageFolder, fingerprint
from tools.tiny_training import MadeRows, curve, plan_stages, tiny_config, train


def config_for(run, **changes):
    config = {**tiny_config(run, steps=2), **changes}
    config["trainer"]["progress"] = "none"
    return config


def test_every_stage_starts_from_the_one_before(tmp_path, capfd):
    last = train(config_for(tmp_path, stage="all"))
    said = capfd.readouterr().out
    assert last == tmp_path / "second" / "model"
    assert f"weights     {tmp_path / 'first' / 'model'}" in said
    assert "weights     vision: random, connector: random, backbone: random" in said


def test_what_is_told_is_printed_as_it_is(tmp_path, capfd):
    train(config_for(tmp_path / "[red]" / "[", stage="first"))
    assert f"first: done, {tmp_path}/[red]/[/first/model" in capfd.readouterr().out


def test_the_head_says_what_a_wrong_start_would_show(tmp_path, capfd):
    train(config_for(tmp_path, stage="first"))
    said = capfd.readouterr().out
    for fact in ("trained     connector", "vision 0/", "2, each of about 8 samples", "1.00e-02", "keep ratio  0.5"):
        assert fact in said


def test_nothing_is_printed_that_is_not_ours(tmp_path, capfd):
    train(config_for(tmp_path, stage="first"))
    said, errors = capfd.readouterr()
    assert errors == ""
    assert not any(word in said for word in ("GPU", "TPU", "Tip", "fit", "warn"))


def test_a_finished_stage_is_skipped(tmp_path, capfd):
    train(config_for(tmp_path, stage="first"))
    model = tmp_path / "first" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    train(config_for(tmp_path, stage="first"))
    assert "finished before" in capfd.readouterr().out
    assert model.stat().st_mtime_ns == written


def test_restart_forgets_checkpoints_that_lie_on_another_disk(tmp_path):
    there, stage = tmp_path / "disk", tmp_path / "run" / "first"
    there.mkdir()
    stage.mkdir(parents=True)
    (stage / "checkpoints").symlink_to(there)
    train(config_for(tmp_path / "run", stage="first"))
    begun = curve(tmp_path / "run", "first")
    train(config_for(tmp_path / "run", stage="first", restart=True))
    assert curve(tmp_path / "run", "first") == begun and len(begun) == 2


def test_restart_trains_a_finished_stage_again(tmp_path):
    train(config_for(tmp_path, stage="first"))
    model = tmp_path / "first" / "model" / "model.safetensors"
    written, before = model.stat().st_mtime_ns, model.read_bytes()
    train(config_for(tmp_path, stage="first", restart=True))
    assert model.stat().st_mtime_ns != written and model.read_bytes() == before
    assert len(curve(tmp_path, "first")) == 2


def test_a_finished_stage_of_another_configuration_is_not_passed_off(tmp_path):
    train(config_for(tmp_path, stage="first"))
    changed = config_for(tmp_path, stage="first")
    changed["stages"]["first"]["peak_lr"] = 0.5
    with pytest.raises(AuroraError, match=r"stages\.first\.peak_lr was 0\.01, is 0\.5.*restart=true"):
        train(changed)


def test_a_stage_notices_that_the_one_before_was_trained_again(tmp_path):
    train(config_for(tmp_path, stage="all"))
    train(config_for(tmp_path, stage="first", restart=True, seed=4))
    with pytest.raises(AuroraError, match=r"start\.model was"):
        train(config_for(tmp_path, stage="second"))


def test_where_and_how_a_stage_runs_may_change_between_attempts(tmp_path, capfd):
    train(config_for(tmp_path, stage="first"))
    other = config_for(tmp_path, stage="first")
    other["trainer"].update(checkpoint_every=7, activation_checkpointing="block")
    train(other)
    assert "finished before" in capfd.readouterr().out


def test_base_weights_are_known_by_what_they_hold_and_not_by_where_they_lie(tmp_path):
    prints = []
    for number, content in enumerate((b"weights", b"weights", b"others!")):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        config = {**tiny_config("run"), "base_weights": {"backbone": {"rwkv6": str(path)}}}
        prints.append(fingerprint(Config.parse(config), "first", None))
    assert prints[0] == prints[1] != prints[2]


def test_how_fast_rows_are_read_may_change_between_attempts():
    before = {**tiny_config("run"), "data": {"name": "webdataset", "root": "a", "workers": 2}}
    now = {**before, "data": {"name": "webdataset", "root": "b", "workers": 0, "prefetch_rows": 4, "prefetch_bytes": 1,
                              "worker_bytes": 1, "sample_seconds": 9, "verify": True, "cache": "c", "cache_bytes": 1}}
    assert fingerprint(Config.parse(now), "first", None) == fingerprint(Config.parse(before), "first", None)


def test_a_stage_whose_forerunner_is_missing_says_which_command_trains_it(tmp_path):
    with pytest.raises(AuroraError, match=f"aurora train run={tmp_path} stage=first"):
        train(config_for(tmp_path))


def test_a_folder_without_a_model_cannot_be_started_from(tmp_path):
    with pytest.raises(AuroraError, match="is not a model folder"):
        train(config_for(tmp_path / "run", init_from=str(tmp_path)))


def test_a_missing_base_weights_file_is_named_before_anything_starts(tmp_path, capfd):
    base = {"backbone": {"rwkv6": str(tmp_path / "absent.pth")}}
    with pytest.raises(AuroraError, match=r"base_weights\.backbone\.rwkv6: .*absent\.pth does not exist"):
        train(config_for(tmp_path, stage="first", base_weights=base))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("change", [{"accelerator": "nonsense"}, {"accelerator": "gpu"}, {"accelerator": "mps"},
                                    {"devices": 0}, {"devices": "x"}, {"devices": [0, 1], "accelerator": "auto"}])
def test_a_machine_that_is_not_there_is_one_clear_error_before_anything_starts(tmp_path, monkeypatch, change):
    for kind in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    config = config_for(tmp_path / "run", stage="first")
    config["trainer"].update(change)
    with pytest.raises(AuroraError, match=rf"^trainer\.{next(iter(change))}"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_an_empty_run_is_not_the_folder_at_hand():
    with pytest.raises(AuroraError, match="run is empty"):
        plan_stages(config_for(""))


def test_a_full_disk_is_said_before_anything_starts(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(AuroraError, match=r"first needs \d\.\d+ GiB; 0\.00 GiB are free on its disk"):
        train(config_for(tmp_path, stage="first"))


def test_a_run_goes_on_where_the_disk_has_room_beside_what_it_holds(tmp_path, monkeypatch):
    config = config_for(tmp_path, stage="first")
    train(config)
    (tmp_path / "first" / "done.json").unlink()
    full = shutil.disk_usage(tmp_path)._replace(free=disk(plan_stages(config)[0].skeleton)
                                                - StageFolder(tmp_path, "first").bytes_on_disk())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    train(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full._replace(free=full.free - 1))
    (tmp_path / "first" / "done.json").unlink()
    with pytest.raises(AuroraError, match="are free on its disk"):
        train(config)


@pytest.mark.parametrize(("change", "message"), [
    ({"callbacks": {"x": None}}, r"trainer\.callbacks.x is None; it must be a mapping"),
    ({"callbacks": {"x": {}}}, r"trainer\.callbacks\.x has no _target_"),
    ({"callbacks": {"x": {"_target_": "lightning.pytorch.Trainer"}}}, r"lightning\.pytorch\.Trainer is not a Callback"),
    ({"strategy": "ddp", "sequence_parallel": 2}, r"sequence_parallel is 2, which does not divide the 1 processes"),
])
def test_trainer_options_that_cannot_be_are_refused_before_anything_starts(tmp_path, change, message):
    config = config_for(tmp_path, stage="first")
    config["trainer"].update(change)
    with pytest.raises(AuroraError, match=message):
        train(config)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("entries", [{"x": 3}, {"x": {}}, {"x": {"_target_": "lightning.pytorch.Trainer"}}])
def test_what_is_no_logger_is_refused_before_anything_starts(tmp_path, entries):
    with pytest.raises(AuroraError, match=r"^logger"):
        plan_stages(config_for(tmp_path, stage="first", logger=entries))


def test_a_stage_is_not_begun_again_where_a_launcher_may_start_it_again(tmp_path, monkeypatch):
    config = config_for(tmp_path, stage="first", restart=True)
    with pytest.raises(AuroraError, match="restart=true removes"):
        plan_stages(config, worlds=[2])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(AuroraError, match="restart=true removes"):
        train(config)


def test_a_prompt_of_the_stage_is_for_its_data_only(tmp_path, monkeypatch):
    seen = []
    built = MadeRows.__init__

    def spy(self, *, prompt, **options):
        seen.append(type(prompt).__module__.rpartition(".")[2])
        built(self, prompt=prompt, **options)

    spy.__signature__ = inspect.signature(built)
    monkeypatch.setattr(MadeRows, "__init__", spy)
    config = config_for(tmp_path, stage="first")
    config["stages"]["first"]["prompt"] = {"name": "image_first"}
    saved = train(config)
    assert seen == ["image_first"]
    assert yaml.safe_load((saved / "config.yaml").read_text())["prompt"]["name"] == "sandwich"


def test_the_saved_model_is_used_with_the_configs_keep_ratio_not_the_stages(tmp_path):
    saved = train(config_for(tmp_path, stage="first", keep_ratio=0.25))
    assert yaml.safe_load((saved / "config.yaml").read_text())["keep_ratio"] == 0.25


def test_max_steps_ends_the_stage_and_its_cosine_early(tmp_path):
    config = config_for(tmp_path, stage="first")
    config["data"]["steps"] = 50
    config["stages"]["first"]["max_steps"] = 3
    train(config)
    assert len(curve(tmp_path, "first")) == 3


def test_the_done_marker_is_plain_json(tmp_path):
    train(config_for(tmp_path, stage="first"))
    done = json.loads((tmp_path / "first" / "done.json").read_text())
    assert done["stages"]["first"]["peak_lr"] == 1e-2


def test_a_broken_done_marker_is_said_with_the_way_out(tmp_path):
    train(config_for(tmp_path, stage="first"))
    (tmp_path / "first" / "done.json").write_text("{")
    with pytest.raises(AuroraError, match=r"done\.json cannot be read .*restart=true"):
        train(config_for(tmp_path, stage="first"))


def test_the_whole_config_lies_beside_the_curve(tmp_path):
    config = config_for(tmp_path, stage="first")
    train(config)
    assert yaml.safe_load((tmp_path / "first" / "config.yaml").read_text()) == json.loads(json.dumps(config))


def test_tensorboard_holds_the_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from aurora.config import load_config

    config = config_for(tmp_path, stage="first")
    config["logger"] = load_config("data.root=data", "logger=csv_tensorboard").tree["logger"]
    train(config)
    events = EventAccumulator(str(tmp_path / "first" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, torch.tensor(float(loss)).item()) for step, loss in curve(tmp_path, "first")]


def test_a_keep_ratio_that_the_blocks_cannot_reach_is_said_before_anything_starts(tmp_path):
    config = {**tiny_config(tmp_path / "run"), "stage": "all"}
    config["vision"]["layers"] = 2  # of which the last one is not computed
    config["stages"]["second"]["keep_ratio"] = 0.01
    with pytest.raises(AuroraError, match=r"stages\.second\.keep_ratio 0\.01: .*cannot merge 4 patches into 1"):
        train(config)
    assert not (tmp_path / "run").exists()
