"""Writes what the demo found as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aurora.assemble import count_parameters
from aurora.config import ModelConfig
from aurora.demo.figures import by_accuracy, draw_groups, family_bars, loss_curves, merged_patches, png, vision_grid
from aurora.model import AuroraModel


class Answer(NamedTuple):
    """One question that the demo asked aloud."""

    video: str
    question: str
    options: tuple[str, ...]
    expected: str
    answer: str
    correct: bool
    caption: str
    frames: tuple[np.ndarray, ...]


def percent(share: float | None) -> str:
    """A share in whole percent; a dash where nothing was asked."""
    return "–" if share is None else f"{100 * share:.0f} %"


def write_report(path: Path, *, model: AuroraModel, config: ModelConfig, result: Mapping[str, Any],
                 answers: Sequence[Answer], curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Renders the page; `curves` holds (step, loss) points per stage."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined)
    page = environment.get_template("report.html.j2").render(
        result=result,
        families=by_accuracy(result),
        percent=percent,
        backbone=config.backbone["name"],
        parameters=f"{sum(count_parameters(model).values()):,}",
        sampling=", ".join(f"{key} {value}" for key, value in config.tree["sampling"].items() if value is not None),
        bars=family_bars(result),
        curves=loss_curves(curves),
        answers=[{**answer._asdict(), "frames": [png(frame) for frame in answer.frames]} for answer in answers],
        patches=[_patch_row(model, answer.frames[len(answer.frames) // 2], config.keep_ratio)
                 for answer in answers],
    )
    path.write_text(page, encoding="utf-8")


def _patch_row(model: AuroraModel, frame: np.ndarray, keep_ratio: float) -> list[dict[str, Any]]:
    prepared = model.vision.prepare(frame)
    pixels = prepared.permute(1, 2, 0).numpy()
    grid = vision_grid(model, prepared)
    rows = [{"blocks": group.blocks, "tokens": group.tokens, "image": png(draw_groups(pixels, group.owner, grid))}
            for group in merged_patches(model, frame, keep_ratio)]
    return [{"blocks": None, "tokens": None, "image": png(pixels, scale=3)}, *rows]
