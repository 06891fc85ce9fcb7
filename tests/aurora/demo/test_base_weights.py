from __future__ import annotations

import random

import torch

from aurora.config import load_config
from aurora.training.stage import initial_model
from datamodules.blocks.render import draw
from datamodules.blocks.scenes import SceneMaker


def test_features_of_the_base_encoder_have_hardly_anything_in_common() -> None:
    """An offset far above what tells patches apart made it luck whether the first stage learned to see."""
    config = load_config("experiment=blocks")
    model = initial_model(config, "pretrain", None)
    maker = SceneMaker(random.Random(1))
    pixels = torch.stack([model.visual_layout(1.0).prepare(draw(maker.plain(3), 0.0).copy()) for _ in range(32)])
    with torch.no_grad():
        features = model.vision(pixels, merge=model.merge, sort=model.sort, keep=64).features.flatten(0, 1)
    assert features.mean(0).norm() < 0.2 * (features - features.mean(0)).norm(dim=-1).mean()
