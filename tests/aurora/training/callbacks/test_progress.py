import io

from rich.console import Console

from aurora.training import run
from tools.tiny_training import tiny_config, train


def output(tmp_path, monkeypatch, *, terminal, **trainer):
    """What training prints on a terminal or elsewhere."""
    written = io.StringIO()
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(run, "Console", lambda **options: Console(file=written, force_terminal=terminal, width=150,
                                                                  **options))
    config = {**tiny_config(tmp_path, steps=5), "stage": "first"}
    config["trainer"].update(trainer)
    train(config)
    return written.getvalue()


def test_elsewhere_a_long_interval_prints_only_the_last_step(tmp_path, monkeypatch):
    said = output(tmp_path, monkeypatch, terminal=False, progress="auto", progress_seconds=100)
    lines = [line for line in said.splitlines() if line.startswith("first ")]
    assert len(lines) == 1 and lines[0].startswith("first 5/5  loss ")
    assert "\x1b" not in said


def test_a_line_shows_loss_rate_and_throughput(tmp_path, monkeypatch):
    said = output(tmp_path, monkeypatch, terminal=False, progress="lines", progress_seconds=100)
    assert all(word in said for word in ("loss ", "lr ", "tokens/s", "samples/s"))


def test_a_terminal_shows_a_bar(tmp_path, monkeypatch):
    said = output(tmp_path, monkeypatch, terminal=True, progress="auto", progress_seconds=100)
    bar = next(line for line in said.split("\n")[::-1] if "5/5" in line)
    assert "\x1b[" in said and "first" in bar and "Epoch" not in said
    assert all(word in bar for word in ("loss: ", "lr: ", "tokens/s: ", "samples/s: "))


def test_none_shows_no_progress(tmp_path, monkeypatch):
    assert "tokens/s" not in output(tmp_path, monkeypatch, terminal=True, progress="none")
