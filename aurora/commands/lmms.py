import sys
from pathlib import Path
from typing import Annotated

import typer

from aurora.commands._options import Json, require_writable_folder

lmms = typer.Typer(add_completion=False, help=(
    "Exchange results with lmms-eval.\n\n`lmms-eval --model auroralong` evaluates a model of Aurora's there.\n\n\b\n"
    "example:\n  aurora lmms export runs/mlvu logs --task mlvu_dev"))


@lmms.command("export")
def export_result(
    *,
    result: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of `aurora eval`.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files of lmms-eval go.")],
    task: Annotated[str, typer.Option(metavar="TASK", help="The task's name in lmms-eval, such as mlvu_dev.")],
) -> None:
    """Write a result as lmms-eval does.

    Writes auroralong/DATE_results.json and auroralong/DATE_samples_TASK.jsonl.

    \b
    example:
      aurora lmms export runs/mlvu logs --task mlvu_dev
    """
    require_writable_folder(folder)
    from aurora.evaluation.lmms_format import export

    for path in export(result, folder, task=task):
        sys.stdout.write(f"{path}\n")


@lmms.command("import")
def import_samples(
    *,
    samples: Annotated[Path, typer.Argument(metavar="FILE", help="A *_samples_TASK.jsonl of `--log_samples`.")],
    asked: Annotated[Path, typer.Option("--items", metavar="OUT", help=(
        "An output folder of `aurora eval` on the same benchmark, of any model: it says what was asked."))],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where predictions and result go.")],
    json_output: Json = False,
) -> None:
    """Score the answers of another model with Aurora's scorers.

    Reads the samples that lmms-eval wrote, and writes a folder that `aurora judge` and `aurora report` read.

    \b
    example:
      aurora lmms import DATE_samples_mlvu_dev.jsonl \\
        --items runs/mlvu --output runs/theirs
    """
    require_writable_folder(output)
    from aurora.evaluation import lmms_format
    from aurora.evaluation.summary import render
    from aurora.terminal import stdout, write_json

    result = lmms_format.import_samples(samples, asked, output)
    write_json(result) if json_output else stdout().print(render(result))
    sys.stderr.write(f"written to {output}\n")
