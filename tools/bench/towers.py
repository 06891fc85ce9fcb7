"""SigLIP towers of the same weights: ours, and that of `transformers`.

Shape letters: N frames, M tokens per frame, Dv width of the tower.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aurora.interfaces import VisionEncoder
from aurora.registry import MERGE, SORT, VISION
from aurora.types import VisualTokens
from tools.bench.machine import DTYPES, Cost


class TowerSize(NamedTuple):
    """The sizes of a SigLIP tower, all its blocks computed."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def config(self) -> dict[str, Any]:
        return {"name": "siglip", **self._asdict(), "feature_layer": -1}

    def pixels(self, frames: int, dtype: torch.dtype, device: str) -> Tensor:
        """The same frames whoever asks: smooth in space, so that neighbouring patches are alike as they are in
        pictures."""
        coarse = torch.rand(frames, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        shape = (self.image_size, self.image_size)
        return torch.nn.functional.interpolate(coarse, shape, mode="bilinear").to(device, dtype)


FULL = TowerSize()
QUICK = TowerSize(image_size=64, width=64, layers=3, heads=2, mlp_width=128)


def random_tower(folder: Path, size: TowerSize) -> Path:
    """A directory of random weights that `transformers` opens too, made when the folder has none."""
    path = folder / f"siglip-{size.width}"
    if not path.exists():
        torch.manual_seed(0)
        tower: Any = VISION.build(size.config())
        tower.save_base(str(path))
    return path


def load_tower(path: Path, size: TowerSize, dtype: torch.dtype, device: str) -> VisionEncoder:
    """Our tower with the weights of a directory, for inference."""
    with torch.device("meta"):
        tower = VISION.build(size.config())
    tower = tower.to(dtype).to_empty(device=device)
    tower.load_base(str(path))
    return tower.eval().requires_grad_(False)


def ours(tower: VisionEncoder, patches: int, ratio: float) -> Callable[[Tensor], VisualTokens]:
    """Our tower, merged by `tome` unless all is kept."""
    merge, sort = MERGE.build({"name": "none" if ratio == 1 else "tome"}), SORT.build({"name": "raster"})
    keep = merge.keep(patches, tower.depth, ratio)
    return torch.inference_mode()(lambda pixels: tower(pixels, merge=merge, sort=sort, keep=keep))


def over_patches(tokens: VisualTokens) -> Tensor:
    """[N, Dv]: the mean over what the patches became. It depends little on which pairs were merged, and in another
    precision others are."""
    size = tokens.size.to(tokens.features.dtype)
    return torch.einsum("nm,nmd->nd", size, tokens.features) / size.sum(1, keepdim=True)


def theirs(path: Path, attention: str, dtype: torch.dtype, device: str) -> Callable[[Tensor], Tensor]:
    """The tower of `transformers`; `attention` is eager or sdpa."""
    from transformers import SiglipVisionModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = SiglipVisionModel.from_pretrained(str(path), attn_implementation=attention, dtype=dtype)
    model = model.to(device).eval()
    return torch.inference_mode()(lambda pixels: model(pixels).last_hidden_state)


def cost(size: TowerSize, frames: int, dtype: str, tokens: list[tuple[int, int]] | None = None) -> Cost:
    """Matrix products and attention of every block; `tokens` are how many enter a block and how many its MLP, by
    default all patches."""
    width, patches = size.width, size.patches
    flops = 2 * patches * 3 * size.patch_size**2 * width
    for entering, kept in tokens or [(patches, patches)] * size.layers:
        flops += 8 * entering * width**2 + 4 * entering**2 * width + 4 * kept * width * size.mlp_width
    weights = size.layers * (4 * width**2 + 2 * width * size.mlp_width)
    return Cost(frames * flops, DTYPES[dtype].itemsize * weights, dtype, (frames * patches, width, size.mlp_width))


def merged_tokens(size: TowerSize, ratio: float) -> list[tuple[int, int]]:
    """How many tokens enter each block, and how many its MLP, when `tome` keeps this share."""
    merge = MERGE.build({"name": "tome"})
    counts, entering = [], size.patches
    for removed in merge.schedule(size.patches, size.layers, merge.keep(size.patches, size.layers, ratio)):
        counts.append((entering, entering - removed))
        entering -= removed
    return counts
