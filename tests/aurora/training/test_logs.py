import pytest

from aurora.training.logs import CURVE_FILE, CsvLogger, build_loggers, read_curve


def steps(folder):
    return [row["step"] for row in read_curve(folder)]


def test_a_resumed_curve_drops_the_steps_that_are_taken_again(tmp_path):
    first = CsvLogger(save_dir=str(tmp_path))
    for step in (1, 2, 3):
        first.log_metrics({"loss": 0.1}, step)
    resumed = CsvLogger(save_dir=str(tmp_path), resume_step=2)
    resumed.log_metrics({"loss": 0.2}, 3)
    assert [(row["step"], row["loss"]) for row in read_curve(tmp_path)] == [("1", "0.1"), ("2", "0.1"), ("3", "0.2")]


def test_a_fresh_run_begins_a_fresh_curve(tmp_path):
    CsvLogger(save_dir=str(tmp_path)).log_metrics({"loss": 1.0}, 1)
    CsvLogger(save_dir=str(tmp_path)).log_metrics({"loss": 2.0}, 1)
    assert steps(tmp_path) == ["1"]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    logger = CsvLogger(save_dir=str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"loss": 0.125}, step)
    path = tmp_path / CURVE_FILE
    path.write_bytes(path.read_bytes()[:-4])
    assert steps(tmp_path) == ["1"]


def test_new_metrics_widen_the_table(tmp_path):
    logger = CsvLogger(save_dir=str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"loss": 2.0, "speed": 3.0}, 2)
    assert [row["speed"] for row in read_curve(tmp_path)] == ["", "3.0"]


@pytest.mark.parametrize("name", ["csv", "csv_tensorboard", "none"])
def test_every_logger_config_builds(name, tmp_path):
    from aurora.config import load_config

    entries = load_config(["data.root=data", f"logger={name}"])["logger"] or {}
    loggers = build_loggers(entries, tmp_path, 0)
    assert len(loggers) == {"csv": 1, "csv_tensorboard": 2, "none": 0}[name]
