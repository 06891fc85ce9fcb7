"""The main job in small: make Blocks world, train the four stages, evaluate, answer, and write a report."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from aurora.config import load_config
from aurora.demo.report import Answer, percent, write_report
from aurora.evaluation.prompts import CAPTION_VIDEO, option_label
from aurora.evaluation.questions import Question, read_questions
from aurora.evaluation.report import render
from aurora.evaluation.run import evaluate
from aurora.evaluation.scoring import chosen_option
from aurora.inference.session import Session
from aurora.inference.visuals import frames_of
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.weights.model_folder import load_model, model_hash

SHOWN = ("moving_direction", "state_change", "needle")
"""The families of the three questions that are asked aloud."""


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
    chosen = any(override.startswith("trainer=") for override in overrides)
    settings = ["experiment=blocks", f"run={folder}", f"data.root={data}", f"seed={seed}",
                *([] if chosen else processes()), *overrides]
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
    (folder / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
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
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        console.print(f"{data} is built")
        return
    mark.unlink(missing_ok=True)
    run_aloud("blocks", str(data), f"--seed={seed}", f"--scale={scale}", console=console)
    mark.write_text(json.dumps(wanted))


def processes() -> list[str]:
    """Two processes of one thread each train so small a model faster than one process of two threads."""
    several = (os.cpu_count() or 1) > 1
    return ["trainer=ddp", "trainer.devices=2", "trainer.threads=1"] if several else ["trainer=cpu"]


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
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.family, question)
    return [first[family] for family in SHOWN if family in first]


def answer_aloud(session: Session, folder: Path, question: Question, console: Console) -> Answer:
    """Asks one question about its video, and for a caption, and prints what is said."""
    video = folder / question.video
    session.watch(video)
    answer = "".join(session.ask(question.prompt)).strip()
    caption = "".join(session.ask(CAPTION_VIDEO)).strip()
    options = tuple(f"{option_label(index)} {option}" for index, option in enumerate(question.options))
    # what a model says is no markup
    console.print(f"{video}  {question.question} {' '.join(options)}", markup=False)
    console.print(f"  → {answer}   (correct: {options[question.right]})", markup=False)
    console.print(f"  → {caption}", markup=False)
    return Answer(
        video=question.video,
        question=question.question,
        options=options,
        expected=options[question.right],
        answer=answer,
        correct=chosen_option(answer, question.options) == question.right,
        caption=caption,
        frames=tuple(frames_of([str(video)], session.sampling, session.reader)),
    )


def peak_memory_bytes() -> int:
    """The largest resident set of this process or of one of its children so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
