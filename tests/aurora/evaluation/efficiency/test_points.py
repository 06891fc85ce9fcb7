"""What one point of the curve measures: real frames through real models, in this process or in one of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurora.errors import AuroraError
from aurora.evaluation.efficiency.__main__ import measure
from aurora.evaluation.efficiency.curve import measure_all, run_point, write_clip
from aurora.evaluation.efficiency.point import OURS, STAGES, Point

SDPA, EAGER = "transformer sdpa", "transformer eager"


@pytest.fixture
def point(model_folder: Path, video: Path) -> Point:
    return Point(series=OURS, frames=9, video=str(video), model=str(model_folder), new_tokens=3)


def test_every_stage_is_timed_and_the_state_does_not_grow(point: Point) -> None:
    few, many = measure(replace(point, frames=1)), measure(replace(point, frames=30))  # the clip has 10 at 2 fps
    assert set(many["stages"]) == set(STAGES)
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 0 for stage in many["stages"].values())
    assert few["memory_bytes"] == many["memory_bytes"] > 0
    assert many["tokens_per_frame"] == 8  # half of 4 × 4 patches


@pytest.mark.parametrize("series", [SDPA, EAGER])
def test_the_cache_of_the_baseline_grows_by_the_tokens_of_every_frame(point: Point, series: str) -> None:
    few, many = (measure(replace(point, series=series, frames=frames)) for frames in (1, 9))
    assert few["tokens_per_frame"] == 16  # all patches there are, fewer than the 256 asked for
    per_token = 2 * 2 * 32 * 4  # keys and values, layers, width, bytes of float32
    assert many["memory_bytes"] - few["memory_bytes"] == 8 * 16 * per_token


def test_the_baseline_reads_as_many_tokens_as_asked(point: Point) -> None:
    assert measure(replace(point, series=SDPA, frames=2, baseline_tokens=5))["tokens_per_frame"] == 5


def test_options_of_the_baseline_are_its_own(point: Point) -> None:
    wide = replace(point, series=SDPA, frames=1, baseline={"layers": 4})
    assert measure(wide)["memory_bytes"] == 2 * measure(replace(wide, baseline={}))["memory_bytes"]
    with pytest.raises(AuroraError, match="no option 'layer'"):
        measure(replace(wide, baseline={"layer": 4}))


@pytest.mark.process
def test_a_point_that_took_too_long_is_measured_again_with_more_time(point: Point, tmp_path: Path) -> None:
    def first(timeout: float) -> dict[str, Any]:
        return measure_all(tmp_path, point, [1], [], timeout_seconds=timeout)["series"][OURS][0]

    assert "took more than 0.1 s" in first(0.1)["reason"]
    assert first(120)["fits"]
    assert first(0.1)["fits"]  # what is known stays


@pytest.mark.process
def test_a_model_that_was_changed_in_its_folder_is_measured_again(point: Point, tmp_path: Path) -> None:
    folder = shutil.copytree(str(point.model), tmp_path / "model")

    def tokens() -> int:
        point_here = replace(point, model=str(folder))
        return measure_all(tmp_path, point_here, [1], [], timeout_seconds=120)["series"][OURS][0]["tokens_per_frame"]

    assert tokens() == 8
    path = folder / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("keep_ratio: 0.5", "keep_ratio: 0.25"), encoding="utf-8")
    assert tokens() == 4


@pytest.mark.slow
def test_a_live_video_is_played_at_a_rate_that_keeps_up(point: Point) -> None:
    found = measure(replace(point, frames=0, stream_seconds=0.5))
    assert found["max_fps"] == found["tried"][-1]["fps"] > 0
    assert found["first_token_seconds"] > 0 and found["peak_bytes"] > found["memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.process
def test_what_does_not_fit_into_the_memory_is_said_and_not_fatal(point: Point) -> None:
    found = run_point(replace(point, series=EAGER, frames=1024, limit_bytes=700_000_000), timeout_seconds=300)
    assert not found["fits"] and "memory" in found["reason"]


@pytest.mark.process
def test_a_limit_below_what_the_libraries_take_is_said_and_not_fatal(point: Point) -> None:
    found = run_point(replace(point, limit_bytes=100_000_000), timeout_seconds=300)
    assert not found["fits"] and found["reason"]


@pytest.mark.process
def test_what_takes_too_long_is_said_and_not_fatal(point: Point) -> None:
    assert run_point(point, timeout_seconds=0.01) == {"fits": False, "reason": "took more than 0.01 s (--timeout)"}


def test_the_generated_clip_is_read_as_a_video(tmp_path: Path, point: Point) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    assert measure(replace(point, frames=20, video=str(clip)))["fits"]
