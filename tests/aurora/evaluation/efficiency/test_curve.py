"""From points to slopes, ratios, tables and figures; measuring itself is replaced by numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aurora.cli import main
from aurora.evaluation.efficiency import curve
from aurora.evaluation.efficiency.figure import draw
from aurora.evaluation.efficiency.point import OURS, STAGES, Point

MIB = 2**20


@dataclass
class Machine:
    """Measures what it is told: aurora takes 100 MiB, a transformer 100 MiB and 3 MiB for each frame."""

    limit: int = 2000
    asked: list[tuple[str, int]] = field(default_factory=list)

    def run(self, point: Point, timeout_seconds: float) -> dict[str, Any]:
        self.asked.append((point.series, point.frames))
        if point.stream_seconds is not None:
            return {"fits": True, "max_fps": 12.5, "first_token_seconds": 0.02, "tried": [], "memory_bytes": MIB,
                    "rest_bytes": 90 * MIB, "peak_bytes": 100 * MIB}
        if point.series != OURS and point.frames > self.limit:
            return {"fits": False, "reason": "CUDA out of memory"}
        grown = 0 if point.series == OURS else 3 * point.frames
        stages = {name: {"seconds": 0.001, "peak_bytes": (100 + grown) * MIB} for name in STAGES}
        return {"fits": True, "tokens_per_frame": 8, "watch_seconds": 0.1 * point.frames, "rest_bytes": 90 * MIB,
                "memory_bytes": (1 + grown) * MIB, "peak_bytes": (100 + grown) * MIB, "stages": stages}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(curve, "run_point", machine.run)
    return machine


@pytest.fixture
def measure(tmp_path: Path, machine: Machine) -> Callable[..., dict[str, Any]]:
    def measure(*frames: int, **changes: Any) -> dict[str, Any]:
        base = Point(series=OURS, frames=1, video="clip.mp4", **changes)
        return curve.measure_all(tmp_path, base, frames, ["transformer sdpa"], timeout_seconds=1)

    return measure


def test_slopes_tell_what_is_constant_and_what_is_linear(measure: Callable[..., dict[str, Any]]) -> None:
    slopes = measure(1, 512, 1024, 2000)["slopes"]
    assert slopes[OURS]["memory"] == pytest.approx(0)
    assert slopes[OURS]["watching"] == pytest.approx(1)
    assert 0.8 < slopes["transformer sdpa"]["memory"] < 1
    assert slopes["transformer sdpa"]["bytes_per_frame"] == pytest.approx(3 * MIB)


def test_memory_is_compared_where_the_paper_compares_it(measure: Callable[..., dict[str, Any]]) -> None:
    result = measure(512, 1024, 2000)
    compared = result["compared"]["transformer sdpa"]
    assert compared["memory"] == pytest.approx(31.72) and compared["memory_above_rest"] == pytest.approx(308.2)
    assert result["level"] == {"frames": [512, 2000], "memory": 1.0, "seconds_per_frame": pytest.approx(1)}


def test_larger_points_are_not_tried_once_one_does_not_fit(measure: Callable[..., dict[str, Any]],
                                                          machine: Machine) -> None:
    machine.limit = 64
    result = measure(64, 1024, 4096, limit_bytes=1000 * MIB)
    points = result["series"]["transformer sdpa"]
    assert [point["fits"] for point in points] == [True, False, False]
    assert points[2]["reason"] == "not tried, since 1,024 frames did not fit"
    assert ("transformer sdpa", 4096) not in machine.asked
    assert result["compared"]["transformer sdpa"] == {"memory": 10.0, "memory_above_rest": None, "seconds": None,
                                                      "at_least": True}


def test_points_that_are_there_are_not_measured_again(measure: Callable[..., dict[str, Any]], machine: Machine) -> None:
    first = measure(1, 4)
    machine.asked.clear()
    assert measure(1, 4, limit_bytes=10**9)["series"] == first["series"] and not machine.asked
    measure(1, 4, new_tokens=5)
    assert len(machine.asked) == 4


def test_the_same_result_draws_the_same_figures(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = measure(1, 16, 1024, 4096)
    first = [path.read_bytes() for path in draw(result, tmp_path)]
    assert [path.read_bytes() for path in draw(result, tmp_path)] == first
    assert (tmp_path / "efficiency.svg").read_text(encoding="utf-8").startswith("<?xml")


def scored(folder: Path, **changes: Any) -> str:
    """The folder of a result."""
    folder.mkdir()
    result = {"benchmark": {"name": "ovo_bench"}, "metric": "accuracy, %", "scorer": "strict", "score": 61.5, "n": 2,
              "families": {}, "versions": {}, "hardware": {}, **changes}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return str(folder)


def test_the_command_shows_points_ratios_and_the_live_row(tmp_path: Path, machine: Machine, model_folder: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    machine.limit = 600
    assert main(["efficiency", "--model", str(model_folder), "--output", str(tmp_path / "out"), "--frames", "512,1024",
                 "--result", f"{scored(tmp_path / 'ovo')}/result.json"]) == 0
    shown, told = capsys.readouterr()
    assert "CUDA out of memory" in shown and "at least" in shown and "ovo_bench" in shown and "61.5" in shown
    assert "aurora: slopes over frames" in shown and "transformer sdpa: slopes" not in shown  # of one point
    assert json.loads((tmp_path / "out/efficiency.json").read_text())["live"]["max_fps"] == 12.5
    assert f"measuring {model_folder}: " in told and "other settings" not in told


def test_every_result_has_a_column_and_those_of_other_settings_are_named(
        tmp_path: Path, machine: Machine, model_folder: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, other = scored(tmp_path / "a", keep_ratio=0.5), scored(tmp_path / "b", keep_ratio=0.1, score=40)
    assert main(["efficiency", "--model", str(model_folder), "--output", str(tmp_path / "out"), "--frames", "1",
                 "--video", str(video), "--result", same, "--result", other, "--json"]) == 0
    shown, told = capsys.readouterr()
    assert json.loads(shown)["live_row"]["accuracy"] == {f"ovo_bench ({same})": 61.5, f"ovo_bench ({other})": 40.0}
    assert f"{other}/result.json was made with other settings than are measured here: keep_ratio was 0.1" in told
    assert f"{same}/result.json" not in told


def test_what_is_measured_is_said_before_it_begins(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    monkeypatch.setattr(curve, "run_point", lambda *_: said.append(capsys.readouterr().err) or {"fits": False,
                                                                                               "reason": "no room"})
    main(["efficiency", "--output", str(tmp_path), "--frames", "1", "--video", str(video)])
    assert "no --model" in said[0] and "random weights" in said[0] and "parameters" in said[0]


@pytest.mark.parametrize(("options", "said"), [
    (["--frames", "1,two"], "must be whole numbers"),
    (["--video", "gone.mp4"], "gone.mp4 is not a file"),
    (["--device", "nowhere"], "cannot be used"),
    (["keep_raito=1"], "keep_raito"),
    (["--result", "gone.json"], "gone.json holds no result.json"),
])
def test_what_is_wrong_is_said_before_anything_is_measured(options: list[str], said: str, tmp_path: Path,
                                                           machine: Machine, model_folder: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["efficiency", "--model", str(model_folder), "--output", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err and not machine.asked
