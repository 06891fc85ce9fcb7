"""From a decoded image to the pixels that an encoder takes, and the row positions that its tokens will need.

Both are values without weights, so that loader workers can hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.interfaces import MergeStrategy

Resize = Literal["crop", "keep_aspect", "pad", "squash"]
LONGEST = 4
"""How many times longer than its short side `keep_aspect` leaves a picture: a strip of 10 × 10,000 pixels would
otherwise become half a million patches."""
GREY = 127


@dataclass(frozen=True)
class ImagePreparation:
    """How an image of any shape becomes pixels whose sides are multiples of the patch size.

    `crop`: the centre square, its sides to `size`. `keep_aspect`: short side to `size`, the long side rounded
    to patches and at most `LONGEST` times the short one. `pad`: long side to `size`, the rest filled with mid-grey.
    `squash`: both sides to `size`. A `size` between two multiples of the patch size is rounded down.
    """

    size: int
    patch_size: int
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize):
            raise AuroraError(f"resize {self.resize!r} is unknown; known: {', '.join(get_args(Resize))}")
        if not 1 <= self.patch_size <= self.size:
            raise AuroraError(f"image size {self.size} holds no whole patch of {self.patch_size} pixels")

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after preparation."""
        side = self.size // self.patch_size * self.patch_size
        if self.resize != "keep_aspect":
            return side, side
        aspect = min(max(height, width) / min(height, width), LONGEST)
        long = round(side * aspect / self.patch_size) * self.patch_size
        return (long, side) if height > width else (side, long)

    def patches(self, height: int, width: int) -> int:
        """Patches of an image of this height and width in pixels, before preparation."""
        rows, columns = self.shape(height, width)
        return (rows // self.patch_size) * (columns // self.patch_size)

    def __call__(self, image: np.ndarray) -> Tensor:
        """[H, W, 3] uint8 → [3, h, w] uint8."""
        height, width = image.shape[:2]
        target = self.shape(height, width)
        if self.resize == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[top:top + side, left:left + side]
        elif self.resize == "pad":
            return self._padded(image, target)
        return resized(image, *target).contiguous()

    def _padded(self, image: np.ndarray, target: tuple[int, int]) -> Tensor:
        scale = min(side / given for side, given in zip(target, image.shape[:2], strict=True))
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        top, left = (target[0] - height) // 2, (target[1] - width) // 2
        canvas = torch.full((3, *target), GREY, dtype=torch.uint8)
        canvas[:, top:top + height, left:left + width] = resized(image, height, width)
        return canvas


def resized(image: np.ndarray, height: int, width: int) -> Tensor:
    """[H, W, 3] uint8 → [3, height, width] uint8 with the strides of a picture: bicubic, and over the whole of what a
    smaller pixel covers. As PIL does it but for rounding and that widths always come first, and four times as fast."""
    whole = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    if whole.shape[1:] == (height, width):
        return whole
    return F.interpolate(whole[None], (height, width), mode="bicubic", antialias=True)[0]


@dataclass(frozen=True)
class VisualLayout:
    """How many row positions a frame takes: the only place where a keep ratio becomes a count."""

    prepare: ImagePreparation
    merge: MergeStrategy
    depth: int
    keep_ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise AuroraError(f"keep_ratio {self.keep_ratio} is outside (0, 1]; 0.1 keeps a tenth of the patches")

    def tokens(self, height: int, width: int) -> int:
        """Tokens kept of an image of this height and width in pixels, before preparation."""
        return self.merge.keep(self.prepare.patches(height, width), self.depth, self.keep_ratio)
