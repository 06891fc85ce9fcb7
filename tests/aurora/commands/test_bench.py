"""`aurora bench` on a tiny configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora import benchmark
from aurora.cli import main

SYNTHETIC = ["experiment=blocks", "data=synthetic", "data.steps=4", "data.height=96", "data.width=96"]
TINY = ["experiment=blocks", "data.row_tokens=128", "data.row_frames=2"]
RUN = ["--seconds", "0.01", "--frames", "1", "--tokens", "8"]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The JSON that the command writes."""

    def bench(*arguments: str) -> dict[str, Any]:
        assert main(["bench", *arguments, *RUN, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return bench


@pytest.mark.slow
def test_a_configuration_is_measured_in_every_work_that_it_has(bench: Callable[..., dict[str, Any]]) -> None:
    result = bench(*SYNTHETIC)
    assert [one["name"] for one in result["measurements"]] == ["vision", "prefill", "decode", "train", "data"]
    assert all(one["rate"] == pytest.approx(one["items"] / one["median"]) and one["runs"] >= 3
               for one in result["measurements"])


@pytest.mark.slow
def test_a_model_folder_is_measured_and_what_it_lacks_is_named(bench: Callable[..., dict[str, Any]],
                                                              model_folder: Path) -> None:
    result = bench("--model", str(model_folder))
    assert [one["name"] for one in result["measurements"]] == ["vision", "prefill", "decode"]
    assert "has no stages" in result["skipped"]["train"]


@pytest.mark.slow
def test_only_the_works_that_are_asked_for_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, *RUN, "--only", "decode"]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "prefill" not in shown


def test_nothing_measured_ends_with_status_1_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "experiment=blocks", *RUN, "--only", "data"]) == 1
    assert "data: not measured:" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--frames", "--tokens", "--sequences", "--seconds"])
def test_sizes_must_be_positive(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, option, "0"]) == 2
    assert f"Invalid value for {option!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_share_of_the_peak_is_shown_where_the_peak_is_known(bench: Callable[..., dict[str, Any]]) -> None:
    [train] = bench(*TINY, "trainer.peak_tflops=1", "--only", "train")["measurements"]
    assert 0 < train["mfu"] < 1


def test_runs_that_are_timed_together_share_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    work = benchmark.Work("decode", "", 8, "tokens", lambda: None, together=2)
    found = benchmark.measure(work, torch.device("cpu"), 0.0)
    assert (found.median, found.rate, found.runs) == (0.5, 16.0, 6)
