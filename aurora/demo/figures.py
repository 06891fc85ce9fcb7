"""The pictures of the demo's report: loss curves, and Figure A1 of the paper redrawn.

Shape letters: P patches of a frame, M tokens kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora.model import AuroraModel
from aurora.types import VisualTokens

PANEL = (240, 110)
"""Width and height in pixels of a curve."""


class Grouping(NamedTuple):
    """Which patches are one token after some blocks of the encoder."""

    blocks: int
    tokens: int
    owner: Tensor  # [P]


def merged_patches(model: AuroraModel, image: np.ndarray, keep_ratio: float) -> list[Grouping]:
    """The groupings of an [H, W, 3] image before the first block and after each quarter of the blocks."""
    layout = model.visual_layout(keep_ratio)
    seen: list[VisualTokens] = []
    blocks = [part for part in model.vision.modules() if isinstance(part, model.vision.block_class)]
    hooks = [block.register_forward_hook(lambda _module, _given, tokens: seen.append(tokens)) for block in blocks]
    try:
        with torch.inference_mode():
            model.encode(layout.prepare(image)[None], layout.tokens(*image.shape[:2]))
    finally:
        for hook in hooks:
            hook.remove()
    patches = seen[0].owner.shape[1]
    quarters = sorted({round(len(seen) * part / 4) for part in (1, 2, 3, 4)} - {0})
    after = [Grouping(count, seen[count - 1].size.shape[1], seen[count - 1].owner[0]) for count in quarters]
    return [Grouping(0, patches, torch.arange(patches)), *after]


def draw_groups(pixels: np.ndarray, owner: Tensor, grid: tuple[int, int], side: int = 288) -> np.ndarray:
    """[side, side, 3] uint8: each token's patches in their mean colour, with a line around them.

    `pixels` is the prepared image [h, w, 3]; `grid` its rows and columns of patches.
    """
    height, width = side, side * pixels.shape[1] // pixels.shape[0]
    picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    rows, columns = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    groups = owner.reshape(grid).numpy()[rows][:, columns]  # [height, width]
    count = np.bincount(groups.ravel())
    means = np.stack([np.bincount(groups.ravel(), picture[..., channel].ravel()) / np.maximum(count, 1)
                      for channel in range(3)], axis=-1)
    drawn = means[groups]
    edges = np.zeros((height, width), dtype=bool)
    edges[1:] |= groups[1:] != groups[:-1]
    edges[:, 1:] |= groups[:, 1:] != groups[:, :-1]
    drawn[edges] = 255
    colored: np.ndarray = drawn.astype(np.uint8)
    return colored


def loss_curves(stages: Mapping[str, Sequence[tuple[int, float]]]) -> tuple[range, list[dict[str, Any]]]:
    """The ticks of the one scale of all panels, and a panel of `PANEL` per stage that has (step, loss) points: its
    number of steps, its first and last smoothed loss, and the points of two SVG polylines."""
    smooth = {stage: _smoothed([loss for _, loss in points]) for stage, points in stages.items() if points}
    highest = max([1.0, *map(max, smooth.values())])
    apart = math.ceil(highest / 5)
    ticks = range(0, apart * math.ceil(highest / apart) + 1, apart)
    curves = []
    for stage, losses in smooth.items():
        steps, raw = zip(*stages[stage], strict=True)
        curves.append({"stage": stage, "steps": steps[-1], "first": losses[0], "last": losses[-1],
                       "raw": _polyline(steps, raw, ticks[-1]), "smooth": _polyline(steps, losses, ticks[-1])})
    return ticks, curves


def _polyline(steps: Sequence[int], losses: Sequence[float], top: int) -> str:
    """Not more points than the panel has pixels; what lies above the scale is drawn at its end."""
    width, height = PANEL
    every = slice(None, None, -(-len(steps) // width))
    return " ".join(f"{width * step / steps[-1]:.1f},{height * (1 - min(loss / top, 1)):.1f}"
                    for step, loss in zip(steps[every], losses[every], strict=True))


def _smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    smooth, weight, shown = 0.0, 0.0, []
    for value in values:
        smooth, weight = keep * smooth + (1 - keep) * value, keep * weight + (1 - keep)
        shown.append(smooth / weight)
    return shown
