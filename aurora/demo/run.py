"""The main job in small: make Blocks world, train the four stages, evaluate, answer, and write a report."""

from __future__ import annotations

import os
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
from aurora.config import ModelConfig, load_config
from aurora.demo.figures import by_accuracy, draw_groups, family_bars, loss_curves, merged_patches, png
from aurora.evaluation.prompts import CAPTION_VIDEO, option_label
from aurora.evaluation.questions import Question, read_questions
from aurora.evaluation.report import render
from aurora.evaluation.run import evaluate
from aurora.evaluation.scoring import chosen_option
from aurora.files import read_json, write_json
from aurora.inference.session import Session
from aurora.inference.visuals import frames_of
from aurora.model import AuroraModel
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.weights.model_folder import load_model, model_hash

SHOWN = ("moving_direction", "state_change", "needle")
"""The families of the three questions that are asked aloud."""


class Answer(NamedTuple):
    """One question that the demo asked aloud."""

    question: Question
    options: tuple[str, ...]  # with their letters
    answer: str
    correct: bool
    caption: str
    frames: tuple[np.ndarray, ...]


def demo(folder: str | Path = "runs/demo", *, scale: float = 1.0, seed: int = 0, overrides: Sequence[str] = ()
         ) -> dict[str, Any]:
    """Everything from nothing to `report.html` and `result.json` in `folder`; returns the result.

    `scale` shrinks or grows the data and with it the training. Data and stages that are finished are not made again.
    """
    began = time.monotonic()
    console = Console(soft_wrap=True, highlight=False)
    folder = Path(folder)
    data = folder / "data"
    console.rule("Blocks world")
    build_once(data, seed, scale, console)

    console.rule("Training")
    # two processes of one thread each train so small a model faster than one process of two threads
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.threads=1"]
    fitting = ddp if (os.cpu_count() or 1) > 1 else ["trainer=cpu"]
    chosen = any(override.startswith("trainer=") for override in overrides)
    settings = ["experiment=blocks", f"run={folder}", f"data.root={data}", f"seed={seed}",
                *([] if chosen else fitting), *overrides]
    recipe = load_config(*settings)
    run_aloud("train", *settings, console=console)

    console.rule("Evaluation")
    trained = folder / list(recipe.stages)[-1] / "model"
    model, config = load_model(trained)
    result = evaluate(model, config, data / "heldout", output=folder / "eval", model_hash=model_hash(trained))
    console.print(render(result))

    console.rule("Answers")
    answers = [answer_aloud(Session.from_config(model, config), data / "heldout", question, console)
               for question in shown(read_questions(data / "heldout"))]

    result |= {
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "seeds": {"data": seed, "training": recipe.seed, "wrong_videos": result["protocol"]["seed"]},
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


def run_aloud(*arguments: str, console: Console) -> None:
    """Runs the command that a user would type, in a process of its own."""
    console.print("$ aurora", *arguments, markup=False)
    sys.stdout.flush()
    command = [sys.executable, "-m", "aurora.cli", *arguments]
    status = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
    if status:
        raise SystemExit(status)


def shown(questions: Sequence[Question]) -> list[Question]:
    """The first question of each family that is asked aloud."""
    first = {question.family: question for question in reversed(questions)}
    return [first[family] for family in SHOWN if family in first]


def answer_aloud(session: Session, folder: Path, question: Question, console: Console) -> Answer:
    """Asks one question about its video, and for a caption, and prints what is said."""
    video = folder / question.video
    session.watch(video)
    answer = "".join(session.ask(question.prompt)).strip()
    caption = "".join(session.ask(CAPTION_VIDEO)).strip()
    options = tuple(f"{option_label(index)} {option}" for index, option in enumerate(question.options))
    # what a model says is not markup
    console.print(f"{video}  {question.question} {' '.join(options)}", markup=False)
    console.print(f"  → {answer}   (correct: {options[question.right]})", markup=False)
    console.print(f"  → {caption}", markup=False)
    return Answer(question, options, answer, chosen_option(answer, question.options) == question.right, caption,
                  tuple(frames_of([str(video)], session.sampling, session.reader)))


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
        answers=answers,
        png=png,
        patches=[_patch_row(model, answer.frames[len(answer.frames) // 2], config.keep_ratio) for answer in answers],
    )
    path.write_text(page, encoding="utf-8")


def _patch_row(model: AuroraModel, frame: np.ndarray, keep_ratio: float) -> list[dict[str, Any]]:
    prepared = model.vision.prepare(frame)
    pixels = prepared.permute(1, 2, 0).numpy()
    side = model.vision.prepare.patch_size
    grid = pixels.shape[0] // side, pixels.shape[1] // side
    rows = [{"blocks": group.blocks, "tokens": group.tokens, "image": png(draw_groups(pixels, group.owner, grid))}
            for group in merged_patches(model, frame, keep_ratio)]
    return [{"blocks": None, "tokens": None, "image": png(pixels, scale=3)}, *rows]
