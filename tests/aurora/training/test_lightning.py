"""What a Lightning user expects of AuroraModule in a Trainer of their own."""

import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ThroughputMonitor,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

import aurora
from aurora.assemble import build_model
from aurora.config import Config
from aurora.errors import AuroraError
from aurora.recipe import Recipe
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.module import AuroraModule
from tools.tiny_training import curve, tiny_config, train

STEPS, LONG = 8, 12  # of an epoch; of a run, which ends in its second epoch


# Lightning's hints about loaders, and about its own code, are not errors of ours
pytestmark = [pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
              pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
              pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")]


def tree(run, **recipe):
    config = tiny_config(run, steps=STEPS)
    config["stages"]["second"] |= {"after": None, "validation": {"mixture": {"rows": 1}, "every": 4}, **recipe}
    return config


def fitted(run, trainer, ckpt_path=None, **recipe):
    """A module and its data after `trainer.fit`."""
    config = Config.parse(tree(run, **recipe))
    module, data = aurora.training_module(config, stage="second"), aurora.data_module(config, stage="second")
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, data


def trainer_of(folder=None, callbacks=(), **options):
    saving = [] if folder is None else [ModelCheckpoint(folder, monitor="val_loss", save_top_k=2, save_last=True)]
    return L.Trainer(**{"accelerator": "cpu", "max_steps": LONG, "val_check_interval": 4, "logger": False,
                        "check_val_every_n_epoch": None, "enable_progress_bar": False, "enable_model_summary": False,
                        "enable_checkpointing": bool(saving), "log_every_n_steps": 1,
                        "callbacks": [*saving, *callbacks], **options})


class StopAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *arguments):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def weights(module):
    return {name: tensor.clone() for name, tensor in module.net.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that nothing happens to."""
    return weights(fitted(tmp_path_factory.mktemp("whole"), trainer_of())[0])


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [4, 6, 9])
def test_fit_resumes_from_the_last_checkpoint_exactly(tmp_path, whole, stopped_at):
    first = trainer_of(tmp_path / "saved", [StopAt(stopped_at)])
    fitted(tmp_path, first)
    second = trainer_of(tmp_path / "saved")
    module, _ = fitted(tmp_path, second, "last")
    assert (first.global_step, second.global_step) == (stopped_at, LONG)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(module).items())


@pytest.mark.slow
def test_checkpoints_are_folders_without_pickle_and_the_best_ones_are_kept(tmp_path):
    trainer = trainer_of(tmp_path / "saved")
    fitted(tmp_path, trainer)
    kept = {path.name: {file.suffix for file in path.iterdir()} for path in (tmp_path / "saved").glob("*.ckpt")}
    assert len(kept) == 3 and all(suffixes == {".safetensors", ".json", ""} for suffixes in kept.values())
    best = trainer.checkpoint_callback
    assert best.best_model_score == min(best.best_k_models.values())


@pytest.mark.slow
def test_a_module_of_another_trainer_continues_from_a_saved_step(tmp_path, whole):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "five")

    fitted(tmp_path, trainer_of(callbacks=[Save()]))
    module, _ = fitted(tmp_path, trainer_of(), tmp_path / "five")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(module).items())


@pytest.mark.slow
def test_validate_gives_what_the_command_line_validates(tmp_path):
    train(tree(tmp_path / "run"))
    expected = [float(row["val_loss"]) for row in read_metrics(tmp_path / "run" / "second") if row["val_loss"]]
    trainer = trainer_of(max_steps=STEPS)
    module, data = fitted(tmp_path, trainer)
    assert float(trainer.callback_metrics["val_loss"]) == expected[-1]
    assert trainer.validate(module, data, verbose=False)[0]["val_loss"] == expected[-1]
    checkpoint = tmp_path / "run" / "second" / "checkpoints" / f"step-{STEPS}"
    fresh = aurora.training_module(Config.parse(tree(tmp_path)), stage="second")
    found = trainer_of().validate(fresh, data, ckpt_path=checkpoint, verbose=False)
    assert found[0]["val_loss"] == expected[-1]


@pytest.mark.slow
def test_the_command_line_and_a_trainer_of_ones_own_train_the_same(tmp_path):
    train(tree(tmp_path / "run"))
    logger = CSVLogger(tmp_path / "log")
    fitted(tmp_path, trainer_of(max_steps=STEPS, logger=logger))
    logged = csv.DictReader((tmp_path / "log/lightning_logs/version_0/metrics.csv").read_text().splitlines())
    assert [row["loss"] for row in logged if row["loss"]] == [loss for _, loss in curve(tmp_path / "run")]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "steps"), [
    ({"fast_dev_run": True, "enable_checkpointing": False}, 1),
    ({"limit_train_batches": 3, "max_epochs": 2, "max_steps": -1}, 6),
    ({"overfit_batches": 2, "max_epochs": 3, "max_steps": -1}, 6),
    ({"max_epochs": 2, "max_steps": -1}, 2 * STEPS),
    ({"limit_val_batches": 1, "max_steps": 4}, 4),
    ({"max_time": {"seconds": 0}}, 0),
])
def test_limits_count_optimizer_steps(tmp_path, options, steps):
    trainer = trainer_of(**options)
    fitted(tmp_path, trainer)
    assert trainer.global_step == steps


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"max_epochs": 2, "max_steps": -1}, {"max_steps": 2 * STEPS},
                                     {"max_epochs": 5, "max_steps": 2 * STEPS}])
def test_the_schedule_spans_what_the_trainer_takes(tmp_path, options):
    rates = []

    class Rates(L.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            rates.append(float(trainer.callback_metrics["lr"]))

    fitted(tmp_path, trainer_of(callbacks=[Rates()], **options))
    peak, half = max(rates), len(rates) // 2
    assert rates.index(peak) < half and 0 < rates[-1] < 0.1 * peak and rates[half] > 0.3 * peak
    assert len(rates) == 2 * STEPS


@pytest.mark.slow
def test_callbacks_see_steps(tmp_path):
    monitor = ThroughputMonitor(batch_size_fn=lambda step: step.samples, window_size=3)
    logger = CSVLogger(tmp_path / "log")
    stopping = EarlyStopping("val_loss", min_delta=10.0, patience=1)
    trainer = trainer_of(callbacks=[stopping, LearningRateMonitor(), monitor], logger=logger)
    fitted(tmp_path, trainer)
    assert trainer.global_step == 8  # the first validation is the best
    text = (tmp_path / "log/lightning_logs/version_0/metrics.csv").read_text()
    assert {"lr-AdamW/pg1", "train/samples", "train/device/flops_per_sec"} <= {*text.splitlines()[0].split(",")}


def test_a_step_that_is_skipped_counts(tmp_path):
    config = tree(tmp_path)
    config["trainer"]["spike"] = {"factor": 1.000001, "window": 2}
    parsed = Config.parse(config)
    module, data = aurora.training_module(parsed, stage="second"), aurora.data_module(parsed, stage="second")
    trainer = trainer_of(max_steps=STEPS)
    trainer.fit(module, data)
    assert trainer.global_step == STEPS and module.skipped > 0


def test_a_module_around_a_model_of_ones_own_trains(tmp_path):
    config = Config.parse(tree(tmp_path))
    recipe = config.stages["second"]
    assert isinstance(recipe, Recipe)
    module = AuroraModule(build_model(config.model), recipe=recipe)
    trainer = trainer_of(max_steps=2)
    trainer.fit(module, aurora.data_module(config, stage="second"))
    assert trainer.global_step == 2 and "val_loss" not in trainer.callback_metrics


def test_lightnings_own_loss_scaling_is_refused_with_what_is_right(tmp_path):
    with pytest.raises(AuroraError, match="Float16"):
        scaling = MixedPrecision("16-mixed", "cpu", torch.GradScaler("cpu"))
        fitted(tmp_path, trainer_of(plugins=[scaling]))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({}, tmp_path / "other.ckpt")
    with pytest.raises(AuroraError, match="is not a training checkpoint"):
        fitted(tmp_path, trainer_of(), tmp_path / "other.ckpt")


def saved(tmp_path, **recipe):
    """A checkpoint of `second` after a step."""
    trainer = trainer_of(max_steps=1)
    fitted(tmp_path / "before", trainer, **recipe)
    trainer.save_checkpoint(tmp_path / "before" / "one")
    return tmp_path / "before" / "one"


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    config = Config.parse(tree(tmp_path))
    module, data = aurora.training_module(config, stage="first"), aurora.data_module(config, stage="first")
    with pytest.raises(AuroraError, match=r"one is of stage 'second', .* trains 'first'.*aurora export \S*one FOLDER"):
        trainer_of(limit_val_batches=0).fit(module, data, ckpt_path=saved(tmp_path))


@pytest.mark.parametrize("recipe", [{"peak_lr": 0.5}, {"mixture": {"rows": 2}}])
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, recipe):
    with pytest.raises(AuroraError, match=rf"one was written .* stages\.second\.{next(iter(recipe))}\S* was"):
        fitted(tmp_path, trainer_of(), saved(tmp_path), **recipe)


def test_a_checkpoint_is_validated_whatever_its_rates_were(tmp_path):
    checkpoint = saved(tmp_path)
    config = Config.parse(tree(tmp_path, peak_lr=0.5))
    module, data = aurora.training_module(config, stage="second"), aurora.data_module(config, stage="second")
    (seen,) = trainer_of().validate(module, data, ckpt_path=checkpoint)
    assert seen["val_loss"] > 0


def test_a_checkpoint_that_started_from_other_weights_is_refused(tmp_path):
    """Its frozen weights are not in it."""
    other = train(tree(tmp_path / "other") | {"seed": 4})
    config = Config.parse(tree(tmp_path))
    module = aurora.training_module(config, stage="second", initial=str(other))
    with pytest.raises(AuroraError, match=r"written with another configuration: .*start\.model was 'absent'"):
        trainer_of().fit(module, aurora.data_module(config, stage="second"), ckpt_path=saved(tmp_path))


def test_a_checkpoint_that_is_missing_is_named(tmp_path):
    with pytest.raises(AuroraError, match=r"there is no checkpoint .*nowhere"):
        fitted(tmp_path, trainer_of(), tmp_path / "nowhere")


def test_the_best_checkpoint_is_gone_on_from(tmp_path):
    trainer = trainer_of(tmp_path / "saved")
    module, data = fitted(tmp_path, trainer)
    best = float(trainer.checkpoint_callback.best_model_score)
    assert trainer.validate(module, data, ckpt_path="best", verbose=False)[0]["val_loss"] == best


def test_what_slurm_had_saved_is_gone_on_from(tmp_path, whole):
    """Lightning's name for a checkpoint of a job that is put back into the queue."""
    first = trainer_of(callbacks=[StopAt(5)], default_root_dir=tmp_path)
    fitted(tmp_path, first)
    first.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    module, _ = fitted(tmp_path, trainer_of(default_root_dir=tmp_path), "hpc")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(module).items())


@pytest.mark.parametrize(("options", "reason"), [
    ({"max_epochs": -1, "max_steps": -1}, r"max_epochs=-1\) has no end .*; give max_steps"),
    ({"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}, "the loader goes on with the next epoch by itself"),
])
def test_a_trainer_that_does_not_fit_steps_is_refused(tmp_path, options, reason):
    with pytest.raises(AuroraError, match=reason):
        fitted(tmp_path, trainer_of(**options))


def test_a_stage_that_is_unknown_is_named_with_those_that_are(tmp_path):
    with pytest.raises(AuroraError, match=r"no stage named 'secnd'.*Did you mean 'second'"):
        aurora.training_module(Config.parse(tree(tmp_path)), stage="secnd")


def test_load_from_checkpoint_names_the_ways_that_work(tmp_path):
    with pytest.raises(AuroraError, match=r"aurora\.training_module.*ckpt_path"):
        AuroraModule.load_from_checkpoint(tmp_path)
