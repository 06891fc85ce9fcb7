import signal
import time
from pathlib import Path

import pytest
import torch

from aurora.config import load_config
from aurora.errors import AuroraError
from aurora.interfaces import DataModule
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.callbacks.watchdog import TRY_AGAIN
from aurora.weights.model_folder import load_model
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards
from tools.tiny_training import (
    HELD_OUT,
    MadeRows,
    exit_codes,
    plan_stages,
    start,
    start_ranks,
    tiny_config,
    train,
    train_together,
)

STEPS, ROWS = 5, 8  # of a run; that are held out
MODEL = Path("second", "model", "model.safetensors")


def config_of(run, *, every=2, mixture=None, **recipe):
    config = {**tiny_config(run, steps=STEPS), "init_from": None}
    config["trainer"]["progress"] = "none"
    config["stages"]["second"] |= {"after": None, **recipe,
                                   "validation": {"mixture": mixture or {"rows": 1}, "every": every, "max_steps": 2}}
    return config


def plain(run, **recipe):
    config = config_of(run, **recipe)
    del config["stages"]["second"]["validation"]
    return config


def columns(run, *names, stage="second"):
    return [tuple(row.get(name, "") for name in ("step", *names)) for row in read_metrics(Path(run) / stage)]


def validated(run):
    """(step, val_loss) of the steps that were validated, exactly as written."""
    return [(int(step), loss) for step, loss in columns(run, "val_loss") if loss]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole")
    train(config_of(run))
    return run


def assert_same_run(run, whole):
    names = ("loss", "val_loss", "val_targets", "lr", "grad_norm")
    assert columns(run, *names) == columns(whole, *names)
    assert (run / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def mean_loss(model, rows):
    with torch.no_grad():
        losses = [model.eval()(row) for row in rows]
    return float(sum(loss.total.double() for loss in losses) / sum(loss.count for loss in losses))


def held_out_rows(model):
    rows = MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None)
    return [rows.row(HELD_OUT + number) for number in range(ROWS)]


# ---- what is measured ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_last_validation_is_the_loss_of_the_model_that_is_saved(whole):
    model = load_model(whole / "second" / "model")[0]
    assert [step for step, _ in validated(whole)] == [2, 4, 5]
    assert float(validated(whole)[-1][1]) == pytest.approx(mean_loss(model, held_out_rows(model)), rel=1e-6)


def test_training_does_not_know_of_validation(whole, tmp_path):
    train(plain(tmp_path))
    assert columns(tmp_path, "loss", "grad_norm") == columns(whole, "loss", "grad_norm")
    assert (tmp_path / MODEL).read_bytes() == (whole / MODEL).read_bytes()


@pytest.mark.slow
def test_training_that_draws_at_random_does_not_know_of_validation_which_draws_nothing(tmp_path):
    lora = {"trained": ["connector"], "adapters": {"backbone": {"lora": {"rank": 2, "alpha": 2, "dropout": 0.5}}}}
    train(config_of(tmp_path / "with", every=1, **lora))
    train(plain(tmp_path / "without", **lora))
    assert columns(tmp_path / "with", "loss") == columns(tmp_path / "without", "loss")
    model = load_model(tmp_path / "with" / "second" / "model")[0]
    last = float(validated(tmp_path / "with")[-1][1])
    assert last == pytest.approx(mean_loss(model, held_out_rows(model)), rel=1e-5)


@pytest.mark.slow
def test_the_average_of_the_weights_is_validated_where_it_becomes_the_model(whole, tmp_path):
    train(config_of(tmp_path, average=0.9))
    model = load_model(tmp_path / "second" / "model")[0]
    assert columns(tmp_path, "loss") == columns(whole, "loss")
    assert validated(tmp_path)[-1] != validated(whole)[-1]
    assert float(validated(tmp_path)[-1][1]) == pytest.approx(mean_loss(model, held_out_rows(model)), rel=1e-6)


@pytest.mark.slow
def test_the_time_of_a_validation_counts_as_no_step(tmp_path, monkeypatch):
    clock, held_out, late = time.perf_counter, MadeRows._held_out, []
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 1000 * len(late))
    monkeypatch.setattr(MadeRows, "_held_out",
                        lambda self, *share: late.append("a validation") or held_out(self, *share))
    monkeypatch.setattr(MadeRows, "stops_at", 3)
    with pytest.raises(AuroraError, match="the data ended after step 3"):
        train(config_of(tmp_path, every=1))
    monkeypatch.setattr(MadeRows, "stops_at", None)
    train(config_of(tmp_path, every=1))
    found = columns(tmp_path, "seconds", "data_wait")
    assert len(late) == STEPS == len(found)  # also of the step that was saved last, before the resumed run
    assert all(float(seconds) < 1000 and float(waited) < 1 for _, seconds, waited in found)


@pytest.mark.slow
def test_rows_to_validate_on_are_prepared_as_those_to_learn_from(tmp_path, monkeypatch):
    asked = []

    def prepare_data(self):
        asked.append(("prepare", self.folder.name))
        DataModule.prepare_data(self)

    def setup(self, stage):
        asked.append((stage.value, self.folder.name))
        DataModule.setup(self, stage)

    monkeypatch.setattr(MadeRows, "prepare_data", prepare_data)
    monkeypatch.setattr(MadeRows, "setup", setup)
    train(config_of(tmp_path))
    assert sorted(asked) == [("fit", "rows"), ("fit", "second"), ("prepare", "rows"), ("prepare", "second")]


def test_shards_are_validated_on_one_dataset_after_the_other_and_bad_samples_listed_once(tmp_path, config_for, sample):
    for name, numbers in (("pictures", range(16)), ("birds", range(16, 22)), ("fish", range(22, 25))):
        write_shards([sample(number) for number in numbers] + broken(name, sample(0)), tmp_path / "data" / name)
    config = config_for(tmp_path / "run", tmp_path / "data")
    config["data"]["max_bad_rate"] = 0.5
    config["stages"]["first"] |= {"validation": {"mixture": {"birds": 1, "fish": {"samples": 2}}, "every": 2}}
    train(config)
    found = columns(tmp_path / "run", "val_loss", "val_loss_birds", "val_loss_fish", "val_targets", stage="first")
    last, birds, fish, targets = map(float, found[-1][1:])
    assert min(birds, fish) < last < max(birds, fish)
    assert len({row[4] for row in found if row[4]}) == 1 and targets > 8
    folder = tmp_path / "run" / "first" / "validation"
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl")] == ["birds/bad_samples.jsonl"]
    assert len((folder / "birds" / "bad_samples.jsonl").read_text().splitlines()) == 1


def broken(name, good):
    """A picture that cannot be read, of the birds."""
    return [ShardSample("9999", good.record, {"png": b"no picture"})] if name == "birds" else []


# ---- several processes -----------------------------------------------------------------------------------------


def case(run, processes, average=None, **options):
    config = config_of(run, mixture={"rows": 1, "more": 1}, keep_ratio=0.5, average=average)
    config["trainer"] |= {"accelerator": "cpu", **options}
    return {"config": config, "processes": processes}


LAYOUTS = {
    "copies": (2, {"strategy": "ddp"}),
    "shards": (2, {"strategy": "fsdp", "reshard_after_forward": False, "checkpoint_every": 2}),
    "hybrid": (4, {"strategy": "fsdp_hybrid", "shard_size": 2, "activation_checkpointing": "block"}),
    "averaged": (2, {"strategy": "fsdp", "reshard_after_forward": False, "average": 0.9}),
    "pieces": (1, {"backprop_tokens": 5}),
    "together": (2, {"strategy": "ddp", "sequence_parallel": 2}),
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    cases = [case(folder / name, processes, **options) for name, (processes, options) in LAYOUTS.items()]
    train_together(cases, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_validate_together_what_one_does(layout, layouts, whole):
    there, here = validated(layouts / layout), validated(whole)
    assert [step for step, _ in there] == [step for step, _ in here]
    model = load_model(layouts / layout / "second" / "model")[0]
    assert float(there[-1][1]) == pytest.approx(mean_loss(model, held_out_rows(model)), rel=1e-5)
    if layout != "pieces":  # which are learned from with a truncated gradient
        # training does not know of averages, which are another model
        name = "loss" if layout == "averaged" else "val_loss"
        found, right = ([float(loss) for _, loss in columns(run, name) if loss] for run in (layouts / layout, whole))
        assert found == pytest.approx(right, rel=1e-5)


# ---- interruptions ---------------------------------------------------------------------------------------------


@pytest.fixture
def begin(tmp_path):
    """Starts a run and waits until it validates; what is left of it is killed in the end."""
    started = []

    def begin(config, world=1, **environment):
        reported = {"SECONDS_PER_HELD_OUT_ROW": "0.2", **environment}
        log = tmp_path / f"log-{len(started)}"
        processes = [start(config, log, **reported)] if world == 1 else start_ranks(config, log, world, **reported)
        started.extend(processes)
        reading = Path(config["run"]) / "second" / "validation" / "rows" / "reading-0"
        deadline = time.monotonic() + 60
        while not reading.exists() and processes[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reading.exists(), log.read_text()
        return processes

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("every", [2, STEPS])
def test_a_run_killed_while_it_validates_goes_on_exactly(every, begin, tmp_path):
    train(config_of(tmp_path / "whole", every=every))
    config = config_of(tmp_path / "run", every=every)
    for process in begin(config):
        process.kill()
        process.join()
    train(config)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("every", "world"), [(2, 1), (STEPS, 1), (2, 2)])
def test_a_signal_ends_a_validation_at_once_which_the_resumed_run_makes_up_for(every, world, begin, tmp_path):
    """After the last step as well: the stage is not done before it was validated."""
    config = config_of(tmp_path / "run", every=every)
    config["trainer"] |= {"strategy": "auto" if world == 1 else "ddp", "checkpoint_every": 1000}
    processes = begin(config, world, SECONDS_PER_HELD_OUT_ROW="0.5")
    processes[-1].terminate()
    assert exit_codes(processes) == [128 + signal.SIGTERM] * world
    assert validated(tmp_path / "run") == [] and [step for step, in columns(tmp_path / "run")] == [
        str(step) for step in range(1, every + 1)]
    assert not (tmp_path / "run" / MODEL).exists()
    config["trainer"] |= {"strategy": "auto"}
    train(config)
    train(config_of(tmp_path / "whole", every=every))
    for (step, loss), (same, expected) in zip(validated(tmp_path / "run"), validated(tmp_path / "whole"), strict=True):
        assert step == same and float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_rows_that_are_read_keep_the_watchdog_quiet_and_a_row_that_hangs_does_not(begin, tmp_path):
    config = config_of(tmp_path / "slow", every=STEPS)
    config["trainer"]["watchdog_seconds"] = 2.0  # a validation takes 2.4
    assert exit_codes(begin(config, SECONDS_PER_HELD_OUT_ROW="0.3")) == [0]
    config = config_of(tmp_path / "hung", every=STEPS)
    config["trainer"]["watchdog_seconds"] = 2.0
    assert exit_codes(begin(config, SECONDS_PER_HELD_OUT_ROW="1000")) == [TRY_AGAIN]


@pytest.mark.slow
def test_validation_may_be_added_to_a_run_that_has_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(MadeRows, "stops_at", 3)
    with pytest.raises(AuroraError, match="the data ended after step 3"):
        train(plain(tmp_path))
    monkeypatch.setattr(MadeRows, "stops_at", None)
    train(config_of(tmp_path))
    assert [step for step, _ in validated(tmp_path)] == [4, 5]


# ---- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("validation", "message"), [
    (5, "stages.second.validation is 5; it must be a mapping"),
    ({"every": 2, "mixtures": {}}, "has no key 'mixtures'.*mixture"),
    ({"mixture": {"rows": 1}, "every": 0}, "validation.every is 0; it must be a whole number"),
    ({"mixture": None, "every": 0}, "validation.every is 0"),
    ({"mixture": {"rows": 1}, "max_steps": 0}, "validation.max_steps is 0; it must be a whole number ≥ 1 or null"),
    ({"mixture": {"rows": 0}}, r"validation\.mixture\.datasets\.rows\.repeats is 0"),
    ({"mixture": {"datasets": {"rows": {"group": "g"}}, "groups": {"g": {"samples": 3}}}},
     "validation.mixture.groups.g.samples is 3; it must be left out"),
])
def test_a_validation_that_makes_no_sense_is_refused(validation, message):
    config = config_of("run")
    config["stages"]["second"]["validation"] = validation
    with pytest.raises(AuroraError, match=message):
        plan_stages(config)


def test_a_held_out_dataset_that_is_missing_is_named_before_anything_starts(tmp_path, config_for, sample):
    write_shards([sample(0)], tmp_path / "data" / "pictures")
    config = config_for(tmp_path / "run", tmp_path / "data")
    config["stages"]["first"] |= {"validation": {"mixture": {"birds": 1}}}
    with pytest.raises(AuroraError, match=r"1 dataset folders are missing .*: birds"):
        plan_stages(config)


def test_data_without_a_mixture_holds_nothing_out(tmp_path):
    config = config_of(tmp_path)
    config["data"] = {"name": "synthetic", "steps": 3, "frames": 1, "height": 16, "width": 16}
    with pytest.raises(AuroraError, match="data 'synthetic' takes no mixture, so it cannot read what is held out"):
        train(config)


def test_missing_datasets_are_dropped_where_they_may_be_but_not_all(tmp_path, config_for, sample):
    for name in ("pictures", "birds"):
        write_shards([sample(number) for number in range(6)], tmp_path / "data" / name)
    config = config_for(tmp_path / "run", tmp_path / "data")
    config["data"]["missing"] = "drop"
    config["stages"]["first"] |= {"validation": {"mixture": {"fish": 1}}}
    with pytest.raises(AuroraError, match=r"none of fish is below data\.root"):
        train(config)
    config["stages"]["first"] |= {"validation": {"mixture": {"fish": 1, "birds": 1}}}
    train(config)
    assert float(columns(tmp_path / "run", "val_loss", stage="first")[-1][1]) > 0


def test_without_a_mixture_nothing_is_held_out():
    assert load_config().stages["vision"].validation is None
    assert load_config("experiment=blocks").stages["vision"].validation is None


@pytest.mark.parametrize("given", ["{birds: 1}", "PATH"])
def test_a_mixture_to_validate_on_is_given_like_one_to_train_on(given, tmp_path):
    (tmp_path / "held_out.yaml").write_text("{birds: 1}")
    mixture = given.replace("PATH", str(tmp_path / "held_out.yaml"))
    config = load_config(f"stages.vision.validation.mixture={mixture}", "stages.vision.validation.every=7")
    held_out = config.stages["vision"].validation
    assert (held_out.every, list(held_out.mixture.datasets)) == (7, ["birds"])
