from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from aurora.assemble import build_model
from aurora.config import load_config
from aurora.figures import draw_groups, merged_patches, quarters
from aurora.model import AuroraModel


@pytest.fixture(scope="module")
def model() -> AuroraModel:
    return build_model(load_config("experiment=blocks").model).eval()


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def test_the_groupings_shrink_to_the_tokens_that_are_kept(model: AuroraModel, frame: np.ndarray) -> None:
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


def test_a_frame_is_drawn_at_every_depth_and_a_report_shows_its_quarters(model: AuroraModel, frame: np.ndarray) -> None:
    groups = merged_patches(model, frame, 0.2)
    assert [group.blocks for group in groups] == list(range(model.vision.depth + 1))
    shown = [group.blocks for group in quarters(groups)]
    assert shown[0] == 0 and shown[-1] == model.vision.depth and len(shown) <= 5


def test_without_filling_the_frame_itself_shows_between_the_lines() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (48, 48, 3), dtype=np.uint8)
    drawn = draw_groups(pixels, torch.tensor([0, 0, 1, 1]), (2, 2), side=48, fill=False)
    lines = (drawn == 255).all(-1)
    assert lines[24].all() and not lines[:24].any() and not lines[25:].any()
    assert np.array_equal(drawn[~lines], pixels[~lines])


def test_another_thread_that_encodes_meanwhile_does_not_get_into_the_figure(model: AuroraModel, frame: np.ndarray
                                                                            ) -> None:
    ended = threading.Event()

    def watch() -> None:
        with torch.inference_mode():
            while not ended.is_set():
                model.encode(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), 13)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(5):
            assert len(merged_patches(model, frame, 0.2)) == model.vision.depth + 1
    finally:
        ended.set()
        thread.join()
