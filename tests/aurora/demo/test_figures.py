from __future__ import annotations

import numpy as np
import pytest
import torch

from aurora.assemble import build_model
from aurora.config import load_config
from aurora.demo.run import PANEL, draw_groups, loss_curves, merged_patches


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def test_the_groupings_shrink_to_the_tokens_that_are_kept(frame: np.ndarray) -> None:
    model = build_model(load_config("experiment=blocks").model).eval()
    groups = merged_patches(model, frame, 0.2)
    assert groups[0].tokens == 64
    assert groups[-1].tokens == model.visual_layout(0.2).tokens(96, 96) == 13
    for group in groups:
        assert len(group.owner.unique()) == group.tokens
    assert [group.tokens for group in groups] == sorted((group.tokens for group in groups), reverse=True)


def test_a_group_is_drawn_in_its_mean_color() -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, 2:] = 200
    drawn = draw_groups(np.kron(pixels, np.ones((24, 24, 1), dtype=np.uint8)), torch.tensor([0, 0, 1, 1] * 2), (2, 4),
                        side=48)
    assert drawn.shape == (48, 96, 3)
    assert (drawn[10, :40] < 20).all()
    assert (drawn[10, 60:] > 180).all()
    assert (drawn[10, 48] == 255).all()


def points(line: str) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_all_curves_are_on_one_scale() -> None:
    width, height = PANEL
    ticks, (first, second) = loss_curves({"pretrain": [(1, 8.0), (2, 4.0)], "vision": [(10, 4.0), (20, 2.0)],
                                          "language": []})
    assert ticks[0] == 0 and 8 <= ticks[-1] < 10 and len(ticks) <= 6
    assert points(first["raw"]) == [(width / 2, pytest.approx(height * (1 - 8 / ticks[-1]), abs=0.1)),
                                 (width, pytest.approx(height * (1 - 4 / ticks[-1]), abs=0.1))]
    assert points(second["raw"])[0][1] == points(first["raw"])[1][1]
    assert (second["stage"], second["steps"], second["first"]) == ("vision", 20, 4.0) and 2 < second["last"] < 4


def test_a_long_curve_has_not_more_points_than_pixels() -> None:
    _, (curve,) = loss_curves({"pretrain": [(step, 0.0) for step in range(1, 5000)]})
    assert PANEL[0] / 2 < len(points(curve["smooth"])) <= PANEL[0]
