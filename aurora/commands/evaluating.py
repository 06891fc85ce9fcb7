"""`aurora eval`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from aurora.commands.finding import model_folder, saved_model
from aurora.errors import AuroraError
from aurora.evaluation.questions import read_questions
from aurora.evaluation.report import render
from aurora.evaluation.run import RESULT_FILE, Protocol, evaluate
from aurora.inference.generation import Generation
from aurora.weights.adapter_folder import adapter_hash
from aurora.weights.model_folder import model_hash


def eval(options: Namespace) -> int:
    """Shows the result as a table; the files say where."""
    if options.parallel < 1:
        raise AuroraError(f"--parallel {options.parallel} reads nothing; give 1 or more")
    protocol = Protocol(open=Generation(max_new_tokens=options.max_new_tokens),
                        wrong_videos=not options.no_wrong_videos, seed=options.seed)
    data, folder = Path(options.data), model_folder(options.model)
    read_questions(data)  # before a model is loaded
    output = Path(options.output) if options.output else folder.parent / "eval" / data.resolve().name
    model, config = saved_model(folder, options.overrides, device=options.device, threads=options.threads,
                                adapter=options.adapter, any_base=options.any_base)
    identity = model_hash(folder) + ("" if options.adapter is None else f"+{adapter_hash(options.adapter)}")
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("asking")
        result = evaluate(
            model, config, data, output=output, protocol=protocol, model_hash=identity, limit=options.limit,
            parallel=options.parallel, restart=options.restart,
            on_progress=lambda done, all: progress.update(bar, completed=done, total=all),
        )
    if options.json:
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    else:
        Console().print(render(result))
        Console(stderr=True).print(f"written to {output / RESULT_FILE}", soft_wrap=True, highlight=False)
    return 0
