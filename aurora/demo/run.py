"""The main job in small: make Blocks world, train the four stages, evaluate, answer, and write a report.

Shape letters: P patches of a frame, M tokens kept.
"""

import base64
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

from aurora.assemble import count_parameters
from aurora.config import Config, ModelConfig, load_config
from aurora.curve import read_metrics
from aurora.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from aurora.evaluation.prompts import CAPTION_VIDEO, option_label
from aurora.evaluation.questions import QUESTIONS_FILE, Question, read_questions, spread
from aurora.evaluation.run import evaluate
from aurora.evaluation.scoring import chosen_option
from aurora.evaluation.summary import render
from aurora.figures import draw_groups, merged_patches, patch_grid, quarters
from aurora.files import read_json, write_json
from aurora.images import data_url
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import frames_of
from aurora.model import AuroraModel
from aurora.weights.model_folder import load_model, model_hash

SHOWN = 3
"""Answers in the report that are right, and as many that are wrong."""
CLIP_BYTES = 1 << 20
"""A video up to this size is put into the report."""
PANEL = (240, 110)
"""Width and height in pixels of a curve."""


class Answer(NamedTuple):
    """One question of the evaluation, what was answered, and what else the model says of the video."""

    question: Question
    answer: str
    chosen: int | None
    caption: list[tuple[str, bool]]  # sentences, and whether they are true
    missing: list[str]  # true sentences that the caption leaves out
    checked: bool  # whether there is a true caption to check against
    frames: tuple[np.ndarray, ...]
    clip: str | None  # a data URL


def demo(folder: str | Path = "runs/demo", *, scale: float = 1.0, seed: int = 0, overrides: Sequence[str] = ()
         ) -> dict[str, Any]:
    """Everything from nothing to `report.html` and `result.json` in `folder`; returns the result.

    `scale` shrinks or grows the data and with it the training. Data and stages that are finished are not made again.
    """
    began = time.monotonic()
    console = Console(soft_wrap=True, highlight=False)
    folder = Path(folder)
    heldout = folder / "data" / "heldout"
    console.rule("Blocks world")
    build_once(folder / "data", seed, scale, console)
    console.rule("Training")
    recipe = train_aloud(folder, seed, overrides, console)
    console.rule("Evaluation")
    trained = folder / list(recipe.stages)[-1] / "model"
    model, config = load_model(trained)
    result = evaluate(model, config, heldout, output=folder / "eval", model_hash=model_hash(trained))
    assert result is not None  # of one process
    console.print(render(result))
    console.rule("Answers")
    answers = answers_shown(VideoModel(model, config), heldout, folder / "eval" / PREDICTIONS_FILE, console)
    result |= {
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "seeds": {"data": seed, "training": recipe.seed, "wrong_videos": result["benchmark"].get("seed", 0)},
    }
    write_json(folder / "result.json", result)
    curves = {stage: [(int(row["step"]), float(row["loss"])) for row in read_metrics(folder / stage)]
              for stage in recipe.stages}
    write_report(folder / "report.html", model=model, config=config, result=result, answers=answers, curves=curves)
    console.rule()
    accuracy, wrong, chance = (percent(result[key]) for key in ("accuracy", "wrong_video_accuracy", "chance"))
    console.print(f"{accuracy} of {result['n']} held-out questions answered correctly, {wrong} about wrong videos, "
                  f"{chance} by chance; {result['seconds'] / 60:.1f} minutes; open {folder / 'report.html'}")
    return result


def build_once(data: Path, seed: int, scale: float, console: Console) -> None:
    """Builds the data unless this very data stands there."""
    mark, wanted = data / "built.json", {"seed": seed, "scale": scale}
    if mark.is_file() and read_json(mark) == wanted:
        console.print(f"{data} is built")
        return
    mark.unlink(missing_ok=True)
    run_aloud("blocks", str(data), f"--seed={seed}", f"--scale={scale}", console=console)
    write_json(mark, wanted)


def train_aloud(folder: Path, seed: int, overrides: Sequence[str], console: Console) -> Config:
    """Trains every stage and returns the config."""
    # two processes of one thread each train so small a model faster than one process of two threads
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.threads=1"]
    fitting = ddp if (os.cpu_count() or 1) > 1 else ["trainer=cpu"]
    chosen = any(override.startswith("trainer=") for override in overrides)
    settings = ["experiment=blocks", f"run={folder}", f"data.root={folder / 'data'}", f"seed={seed}",
                *([] if chosen else fitting), *overrides]
    recipe = load_config(*settings)
    run_aloud("train", *settings, console=console)
    return recipe


def run_aloud(*arguments: str, console: Console) -> None:
    """Runs the command that a user would type, in a process of its own."""
    console.print("$ aurora", *arguments, markup=False)
    sys.stdout.flush()
    command = [sys.executable, "-m", "aurora", *arguments]
    status = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
    if status:
        raise SystemExit(status)


def answers_shown(model: VideoModel, folder: Path, predictions: Path, console: Console) -> list[Answer]:
    """Right and wrong answers of an evaluation in turn, `SHOWN` of each spread over the questions, and captions of
    their videos; prints them."""
    truths = {line["id"]: line.get("caption") for line in
              map(json.loads, (folder / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines())}
    said = {made.id: made.answer for made in read_predictions(predictions)[1]}
    chosen = {asked: chosen_option(said[asked.id], asked.options) for asked in read_questions(folder)
              if asked.options and asked.id in said}
    right, wrong = ([asked for asked, option in chosen.items() if (option == asked.right) is value]
                    for value in (True, False))
    answers = []
    for asked in (*spread(right, SHOWN), *spread(wrong, SHOWN)):
        video = folder / asked.video
        caption = model.watch(video, prompt=model.config.prompt).ask(CAPTION_VIDEO)
        # what a model says is not markup
        console.print(f"{video}  {asked.prompt.replace(chr(10), ' ')}", markup=False)
        console.print(f"  → {said[asked.id]}   (correct: {asked.answer})\n  → {caption}", markup=False)
        truth = truths[asked.id]
        clip = video.read_bytes()
        answers.append(Answer(
            asked, said[asked.id], chosen[asked], *check_caption(caption, truth or ""), truth is not None,
            tuple(frames_of([str(video)], model.config.sampling, model.reader)),
            f"data:video/mp4;base64,{base64.b64encode(clip).decode()}" if len(clip) <= CLIP_BYTES else None))
    return answers


def check_caption(caption: str, truth: str) -> tuple[list[tuple[str, bool]], list[str]]:
    """The caption's sentences, each with whether the true caption holds it, and those of the true one it leaves out.

    The captions of Blocks world are a sentence per event, always in the same words. One said twice is true once.
    """
    missing = _sentences(truth)
    checked = []
    for sentence in _sentences(caption):
        checked.append((sentence, sentence in missing))
        if sentence in missing:
            missing.remove(sentence)
    return checked, missing


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]


def peak_memory_bytes() -> int:
    """The largest resident set of this process or of one of its children so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def percent(share: float | None) -> str:
    """A share in whole percent; a dash where nothing was asked."""
    return "–" if share is None else f"{100 * share:.0f} %"


def write_report(path: Path, *, model: AuroraModel, config: ModelConfig, result: Mapping[str, Any],
                 answers: Sequence[Answer], curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Renders the page; `curves` holds (step, loss) points per stage."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    ticks, panels = loss_curves(curves)
    page = environment.get_template("report.html.j2").render(
        result=result,
        families=sorted(result["families"].items(), key=lambda family: -family[1]["accuracy"]),
        percent=percent,
        backbone=config.backbone["name"],
        parameters=f"{sum(count_parameters(model).values()):,}",
        sampling=", ".join(f"{key} {value}" for key, value in config.tree["sampling"].items() if value is not None),
        curves=panels,
        ticks=ticks,
        panel=PANEL,
        answers=answers,
        label=option_label,
        picture=data_url,
        patches=[_patch_row(model, answer.frames[len(answer.frames) // 2], config.keep_ratio)
                 for answer in answers[:SHOWN]],
    )
    path.write_text(page, encoding="utf-8")


def _patch_row(model: AuroraModel, frame: np.ndarray, keep_ratio: float) -> list[dict[str, str]]:
    """The frame and its groups of patches as pictures of one size, each with a caption and a description."""
    pixels = model.vision.prepare(frame).permute(1, 2, 0).numpy()
    row = [{"image": data_url(pixels), "caption": "the frame", "alt": "a frame of a video"}]
    for group in quarters(merged_patches(model, frame, keep_ratio)):
        where = f"after block {group.blocks}" if group.blocks else "patches"
        row.append({"image": data_url(draw_groups(pixels, group.owner, patch_grid(model, pixels))),
                    "caption": f"{where}: {group.tokens} tokens",
                    "alt": f"The same frame, {where}: {group.tokens} areas in their mean colors"})
    return row


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
