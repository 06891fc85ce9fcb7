import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aurora.commands._options import Adapter, Device, Json, ModelFolder, Overrides, Score


@dataclass(frozen=True)
class Asked:
    """Questions"""

    score: Score = "text"
    no_wrong_videos: Annotated[bool, typer.Option(
        "--no-wrong-videos", help="Leave out the questions about wrong videos.")] = False
    seed: Annotated[int, typer.Option(metavar="N", help="Of the choice of wrong videos.")] = 0
    letters: Annotated[bool, typer.Option(
        "--letters", help="Ask for the letter of an option, as most benchmarks do, instead of the option.")] = False
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Of answers to open questions.")] = 128


def eval(
    *,
    overrides: Overrides,
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder that holds questions.jsonl.")],
    model: ModelFolder = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
        "Where results go. Default: beside the model, as eval/NAME OF THE DATA FOLDER."))] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Ask only N questions, spread over the file.")] = None,
    parallel: Annotated[int, typer.Option(
        metavar="N", min=1, help="Questions about one video that are read side by side.")] = 32,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the predictions that are there.")] = False,
    json_output: Json = False,
    asked: Asked, adapter: Adapter, device: Device,
) -> None:
    """Measure a model on a folder of questions.

    Asks every question of FOLDER/questions.jsonl, about its own video and, if it has options, about a wrong one.
    Writes predictions.jsonl, line by line, and result.json. A stopped evaluation resumes.

    A line is {"id", "video", "family", "question", "options": [...], "answer": index of the right one}, or without
    options and with "answer": text. Overrides change how the model is used.

    \b
    example:
      aurora eval --model runs/demo/language_video/model \\
        --data data/blocks/heldout keep_ratio=0.5
    """
    from aurora.terminal import Waiting, progress_bar, stdout, write_json

    with Waiting("loading"):
        from aurora.evaluation.questions import read_questions
        from aurora.evaluation.run import RESULT_FILE, Protocol, evaluate
        from aurora.evaluation.summary import render
        from aurora.inference.generation import Generation
        from aurora.inference.models import model_folder, saved_model
        from aurora.weights.adapters import adapter_hash
        from aurora.weights.model_folder import model_hash

        protocol = Protocol(score=asked.score, open=Generation(max_new_tokens=asked.max_new_tokens),
                            wrong_videos=not asked.no_wrong_videos, seed=asked.seed, letters=asked.letters)
        folder = model_folder(model)
        read_questions(data)  # before a model is loaded
        output = output or folder.parent / "eval" / data.resolve().name
        used, config = saved_model(folder, overrides, **vars(adapter), **vars(device))
        identity = model_hash(folder) + ("" if adapter.adapter is None else f"+{adapter_hash(adapter.adapter)}")
    with progress_bar("asking") as tick:
        result = evaluate(used, config, data, output=output, protocol=protocol, model_hash=identity, limit=limit,
                          parallel=parallel, restart=restart, on_progress=tick)
    if json_output:
        return write_json(result)
    stdout().print(render(result))
    sys.stderr.write(f"written to {output / RESULT_FILE}\n")
