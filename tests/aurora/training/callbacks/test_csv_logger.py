import os
import resource
import signal

import pytest

from aurora.config import load_config
from aurora.errors import AuroraError
from aurora.training.callbacks import build_loggers
from aurora.training.callbacks.csv_logger import METRICS_FILE, CsvLogger, read_metrics


def steps(folder):
    return [row["step"] for row in read_metrics(folder)]


def test_a_resumed_curve_drops_the_steps_that_are_taken_again(tmp_path):
    first = CsvLogger(save_dir=str(tmp_path))
    for step in (1, 2, 3):
        first.log_metrics({"loss": 0.1}, step)
    resumed = CsvLogger(save_dir=str(tmp_path), resume_step=2)
    resumed.log_metrics({"loss": 0.2}, 3)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [("1", "0.1"), ("2", "0.1"), ("3", "0.2")]


def test_a_fresh_run_begins_a_fresh_curve(tmp_path):
    CsvLogger(save_dir=str(tmp_path)).log_metrics({"loss": 1.0}, 1)
    CsvLogger(save_dir=str(tmp_path)).log_metrics({"loss": 2.0}, 1)
    assert steps(tmp_path) == ["1"]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    logger = CsvLogger(save_dir=str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"loss": 0.125}, step)
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-4])
    assert steps(tmp_path) == ["1"]


def test_new_metrics_widen_the_table(tmp_path):
    logger = CsvLogger(save_dir=str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"loss": 2.0, "speed": 3.0}, 2)
    assert [row["speed"] for row in read_metrics(tmp_path)] == ["", "3.0"]


@pytest.mark.parametrize("rest", [b"\0" * 50, b"\0\0\n\0\n", b"\xff\xfe\n", b"-,1\n", b"\n\n"])
def test_what_a_crash_left_behind_the_last_line_is_left_out(tmp_path, rest):
    CsvLogger(save_dir=str(tmp_path)).log_metrics({"loss": 0.125}, 1)
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes() + rest)
    CsvLogger(save_dir=str(tmp_path), resume_step=1).log_metrics({"loss": 0.5}, 2)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [("1", "0.125"), ("2", "0.5")]


def test_lines_that_a_full_disk_did_not_take_are_written_later(tmp_path, monkeypatch):
    logger = CsvLogger(save_dir=str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # three more bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (logger.path.stat().st_size + 3, limits[1]))
    try:
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                logger.log_metrics({"loss": 1.0}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handled)
    assert steps(tmp_path) == ["1"]
    logger.log_metrics({"loss": 1.0}, 4)
    assert steps(tmp_path) == ["1", "2", "3", "4"]


def test_what_is_said_of_a_step_later_comes_into_its_line(tmp_path):
    logger = CsvLogger(save_dir=str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"loss": step}, step)
    logger.log_metrics({"val_loss": 0.5}, 2)
    logger.log_metrics({"loss": 3}, 3)
    resumed = CsvLogger(save_dir=str(tmp_path), resume_step=2)
    resumed.log_metrics({"val_loss": 0.25}, 2)
    resumed.log_metrics({"loss": 4}, 3)
    assert read_metrics(tmp_path) == [{"step": "1", "loss": "1", "val_loss": ""},
                                    {"step": "2", "loss": "2", "val_loss": "0.25"},
                                    {"step": "3", "loss": "4", "val_loss": ""}]


@pytest.mark.parametrize("lost", [{"loss": 2}, {"val_loss": 0.5}])
def test_what_could_not_be_written_of_a_step_comes_into_its_line_later(lost, tmp_path, monkeypatch):
    logger = CsvLogger(save_dir=str(tmp_path))
    logger.log_metrics({"loss": 1}, 1)
    if "loss" not in lost:
        logger.log_metrics({"loss": 2}, 2)
    with monkeypatch.context() as full:
        full.setattr(type(tmp_path), "open", fails)
        with pytest.raises(OSError, match="no space"):
            logger.log_metrics(lost, 2)
    if "loss" in lost:
        logger.log_metrics({"val_loss": 0.5}, 2)
    logger.log_metrics({"loss": 3}, 3)
    assert [(row["loss"], row["val_loss"]) for row in read_metrics(tmp_path)] == [("1", ""), ("2", "0.5"), ("3", "")]


def fails(*arguments, **options):
    raise OSError("no space")


def test_a_curve_that_cannot_be_rewritten_stays(tmp_path, monkeypatch):
    CsvLogger(save_dir=str(tmp_path)).log_metrics({"loss": 1.0}, 1)

    def fails(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        CsvLogger(save_dir=str(tmp_path), resume_step=1).log_metrics({"loss": 1.0, "speed": 2.0}, 2)
    assert steps(tmp_path) == ["1"]


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_a_logger_without_its_server_is_one_line_before_anything_starts(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    entry = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "file:///proc/none"}
    with pytest.raises(AuroraError, match=r"^logger\.server: [^\n]+$"):
        build_loggers({"server": entry}, tmp_path, 0, print)


@pytest.mark.parametrize("name", ["csv", "csv_tensorboard", "none"])
def test_every_logger_config_builds(name, tmp_path):
    loggers = build_loggers(entries(name), tmp_path, 0, print)
    assert len(loggers) == {"csv": 1, "csv_tensorboard": 2, "none": 0}[name]


def entries(name, *overrides):
    return load_config(f"logger={name}", *overrides).logger


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_weights_and_biases_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for resume_step in (0, 1):
        _, logger = build_loggers(entries("wandb"), tmp_path / "vision", resume_step, print)
        logger.log_metrics({"loss": 1.0}, step=resume_step + 1)
        ids.append(logger.experiment.id)
        logger.experiment.finish()
    assert ids[0] == ids[1]
    other = build_loggers(entries("wandb", "logger.wandb.project=mine"), tmp_path / "other", 0, print)
    assert other[1]._id != ids[0]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ids = []
    for resume_step in (0, 3, 0):
        _, logger = build_loggers(entries("mlflow"), tmp_path, resume_step, print)
        logger.log_metrics({"loss": 1.0}, step=resume_step + 1)
        ids.append(logger.run_id)
    assert ids[0] == ids[1] != ids[2]  # a stage that begins again is a run of its own
    steps = [point.step for point in logger.experiment.get_metric_history(ids[0], "loss")]
    assert steps == [1, 4]
