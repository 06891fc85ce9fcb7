"""From a decoded image to the pixels that an encoder takes, and the row positions that its tokens will need.

Both are values without weights, so that loader workers can hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from PIL import Image

from aurora.errors import AuroraError

if TYPE_CHECKING:
    from torch import Tensor

    from aurora.interfaces import MergeStrategy

Resize = Literal["crop", "keep_aspect", "pad", "squash"]
LONGEST = 4
"""How many times longer than its short side `keep_aspect` leaves a picture: a strip of 10 × 10,000 pixels would
otherwise become half a million patches."""


@dataclass(frozen=True)
class ImagePreparation:
    """How an image of any shape becomes pixels whose sides are multiples of the patch size.

    `crop`: short side to `size`, then the centre square. `keep_aspect`: short side to `size`, the long side rounded
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
        picture = Image.fromarray(np.ascontiguousarray(image))
        if self.resize == "crop":
            side = min(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            picture = picture.resize(target[::-1], Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        elif self.resize == "pad":
            picture = self._padded(picture, target)
        else:
            picture = picture.resize(target[::-1], Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def _padded(self, picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        scale = min(target[0] / picture.height, target[1] / picture.width)
        width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        canvas = Image.new("RGB", target[::-1], (127, 127, 127))
        corner = ((target[1] - width) // 2, (target[0] - height) // 2)
        canvas.paste(picture.resize((width, height), Image.Resampling.BICUBIC), corner)
        return canvas


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
