"""Figure A1 of the paper for any frame: which patches are one token at each depth of the encoder, and a picture of it.

Shape letters: P patches of a frame.
"""

import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora.model import AuroraModel
from aurora.types import VisualTokens


class Grouping(NamedTuple):
    """Which patches are one token after some blocks of the encoder."""

    blocks: int
    tokens: int
    owner: Tensor  # [P]


def merged_patches(model: AuroraModel, image: np.ndarray, keep_ratio: float) -> list[Grouping]:
    """The groupings of an [H, W, 3] image before the first block and after every block.

    AuroraError for a keep ratio that the model's merge cannot reach.
    """
    layout = model.visual_layout(keep_ratio)
    seen: list[VisualTokens] = []
    here = threading.get_ident()

    def look(_module: Any, _given: Any, tokens: VisualTokens) -> None:
        if threading.get_ident() == here:  # another thread may be watching a film with the same encoder
            seen.append(tokens)

    blocks = [part for part in model.vision.modules() if isinstance(part, model.vision.block_class)]
    hooks = [block.register_forward_hook(look) for block in blocks]
    try:
        with torch.inference_mode():
            pixels = layout.prepare(image)[None].to(next(model.vision.parameters()).device)
            model.encode(pixels, layout.tokens(*image.shape[:2]))
    finally:
        for hook in hooks:
            hook.remove()
    patches = seen[0].owner.shape[1]
    after = [Grouping(count, tokens.size.shape[1], tokens.owner[0].cpu()) for count, tokens in enumerate(seen, 1)]
    return [Grouping(0, patches, torch.arange(patches)), *after]


def quarters(groups: list[Grouping]) -> list[Grouping]:
    """Those before the first block and after each quarter of the blocks."""
    blocks = len(groups) - 1
    return [groups[count] for count in sorted({round(blocks * part / 4) for part in range(5)})]


def patch_grid(model: AuroraModel, pixels: np.ndarray) -> tuple[int, int]:
    """Rows and columns of patches of a prepared image [h, w, 3]."""
    side = model.vision.prepare.patch_size
    return pixels.shape[0] // side, pixels.shape[1] // side


def draw_groups(pixels: np.ndarray, owner: Tensor, grid: tuple[int, int], side: int = 288, *, fill: bool = True
                ) -> np.ndarray:
    """[side, w, 3] uint8: a line around the patches of each token, over their mean color or, without `fill`, over the
    frame itself.

    `pixels` is the prepared image [h, w, 3]; `grid` its rows and columns of patches.
    """
    height, width = side, side * pixels.shape[1] // pixels.shape[0]
    picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    rows, columns = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    groups = owner.reshape(grid).numpy()[rows][:, columns]  # [height, width]
    drawn = _mean_colors(picture, groups) if fill else picture.copy()
    edges = np.zeros((height, width), dtype=bool)
    edges[1:] |= groups[1:] != groups[:-1]
    edges[:, 1:] |= groups[:, 1:] != groups[:, :-1]
    drawn[edges] = 255
    colored: np.ndarray = drawn.astype(np.uint8)
    return colored


def _mean_colors(picture: np.ndarray, groups: np.ndarray) -> np.ndarray:
    count = np.maximum(np.bincount(groups.ravel()), 1)
    means = np.stack([np.bincount(groups.ravel(), picture[..., channel].ravel()) / count for channel in range(3)],
                     axis=-1)
    filled: np.ndarray = means[groups]
    return filled
