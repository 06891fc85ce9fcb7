"""The pictures of the demo's report: curves, bars, film strips, and Figure A1 of the paper redrawn.

Shape letters: P patches of a frame, M tokens kept.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from aurora.model import AuroraModel
from aurora.types import VisualTokens

matplotlib.use("Agg")
INK, ACCENT, PALE = "#27303f", "#1f77b4", "#c9d3df"


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


def png(pixels: np.ndarray, scale: int = 1) -> str:
    """A data URL of [H, W, 3] uint8 pixels, enlarged by a whole factor."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curves(stages: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """One panel per stage: loss in nats per answer token against optimizer steps."""
    figure = Figure(figsize=(11, 2.7))
    for index, (stage, points) in enumerate(stages.items()):
        axes = figure.add_subplot(1, len(stages), index + 1)
        steps, losses = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, losses, color=PALE, linewidth=0.8)
        axes.plot(steps, _smoothed(losses), color=ACCENT, linewidth=1.6)
        axes.set_title(stage.replace("_", " "), fontsize=10, color=INK)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("loss (nats)", fontsize=8)
    return _svg(figure)


def by_accuracy(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result's families, those answered best first."""
    return dict(sorted(result["families"].items(), key=lambda item: -item[1]["accuracy"]))


def family_bars(result: Mapping[str, Any]) -> str:
    """Accuracy by family with its interval, the wrong video's beside it, and chance as a line."""
    families = by_accuracy(result)
    figure = Figure(figsize=(11, 3.6))
    axes = figure.add_subplot()
    places = np.arange(len(families))
    rows = list(families.values())
    accuracy = np.array([row["accuracy"] for row in rows])
    # at 0 and 1 rounding may put an end of the interval a hair inside the value
    reach = np.clip([accuracy - [row["low"] for row in rows], [row["high"] for row in rows] - accuracy], 0, None)
    axes.bar(places - 0.2, accuracy, 0.38, yerr=reach, color=ACCENT, ecolor=INK, capsize=2, label="its own video")
    wrong = [row["wrong_video_accuracy"] or 0.0 for row in rows]
    axes.bar(places + 0.2, wrong, 0.38, color=PALE, label="a wrong video")
    axes.axhline(result["chance"], color=INK, linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(places, [name.replace("_", "\n") for name in families], fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=3, bbox_to_anchor=(1, 1.12))
    return _svg(figure)


def _smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    smooth, weight, shown = 0.0, 0.0, []
    for value in values:
        smooth, weight = keep * smooth + (1 - keep) * value, keep * weight + (1 - keep)
        shown.append(smooth / weight)
    return shown


def _svg(figure: Figure) -> str:
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
