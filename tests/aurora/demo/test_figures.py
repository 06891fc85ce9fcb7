from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from aurora.assemble import build_model
from aurora.config import load_config
from aurora.demo.figures import by_accuracy, draw_groups, family_bars, loss_curves, merged_patches, png


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


def test_a_picture_survives_its_data_url(frame: np.ndarray) -> None:
    raw = base64.b64decode(png(frame).removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(raw))) == frame).all()


def test_curves_of_stages_without_a_step_are_empty_panels() -> None:
    drawn = loss_curves({"pretrain": [(1, 2.0), (2, 1.0)], "vision": []})
    assert drawn.startswith("<svg")
    assert drawn.rstrip().endswith("</svg>")


def test_families_answered_best_come_first() -> None:
    families = {name: {"accuracy": accuracy} for name, accuracy in (("count", 0.25), ("order", 1.0), ("place", 0.5))}
    assert list(by_accuracy({"families": families})) == ["order", "place", "count"]


def test_bars_stand_at_zero_and_at_one() -> None:
    row = {"n": 4, "chance": 0.25, "wrong_video_accuracy": None}
    families = {"never": {**row, "accuracy": 0.0, "low": 0.0, "high": 0.49},
                "always": {**row, "accuracy": 1.0, "low": 0.51, "high": 1.0}}
    assert family_bars({"families": families, "chance": 0.25}).startswith("<svg")
