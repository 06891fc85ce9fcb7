import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora.commands._options import Device, Json, require_writable_folder
from aurora.errors import AuroraError


@dataclass(frozen=True)
class Evaluation:
    """Evaluation"""

    benchmark: Annotated[str, typer.Option(metavar="NAME", help="What every job is measured on.")] = "blocks"
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The benchmark's folder.")] = None
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The model of every job.")] = None
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Questions that every job asks.")] = None


@dataclass(frozen=True)
class Training:
    """Training"""

    train: Annotated[bool, typer.Option("--train", help=(
        "Train a model for every job first. Overrides are those of training then; eval.KEY=VALUE is one of evaluation."
    ))] = False
    stage: Annotated[str, typer.Option(metavar="NAME", help="The stage whose model is evaluated.")] = "language_video"


def sweep(
    *,
    overrides: Annotated[list[str], typer.Argument(metavar="OVERRIDE", default_factory=list, show_default=False, help=(
        "KEY=VALUE,VALUE,… in the syntax of Hydra's multirun. hydra/launcher=joblib and hydra.launcher.KEY=VALUE say "
        "how jobs run."))],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where jobs, sweep.json and the figures go.")],
    gather: Annotated[bool, typer.Option("--gather", help=(
        "Run nothing: gather what is there, after `aurora judge` or while jobs run elsewhere."))] = False,
    repeat: Annotated[list[str] | None, typer.Option(metavar="KEY", help=(
        "An axis to take means over, such as model for the same training with several seeds. Keys that end in seed "
        "are such axes."))] = None,
    evaluation: Evaluation, training: Training, device: Device, json_output: Json = False,
) -> int:
    """Evaluate a grid of settings, or train and evaluate it.

    Every combination of values is a job in a folder of its own. A sweep that was stopped resumes: jobs that are done
    are not run again. More axes than keys of the config: model=FOLDER,FOLDER, benchmark=NAME,NAME, data=FOLDER,FOLDER,
    and set=LIST,LIST for overrides that change together.

    \b
    example:
      aurora sweep --model runs/demo/language_video/model \\
        --data data/blocks/heldout --output runs/sweep \\
        keep_ratio=0.1,0.2,0.5 sort=size,raster,random
      aurora sweep --train --data data/blocks/heldout \\
        --output runs/seeds experiment=blocks \\
        data.root=data/blocks seed=0,1,2 hydra/launcher=joblib
    """
    from aurora.terminal import Waiting, write_json

    require_writable_folder(output)
    status = 0
    with Waiting("loading") as waiting:
        from aurora.evaluation.sweep import run as sweeps
        from aurora.evaluation.sweep.figures import draw, tables
        from aurora.evaluation.sweep.plan import make_plan

        if not gather:
            plan, hydra = make_plan(
                overrides, train=training.train, stage=training.stage, benchmark=evaluation.benchmark,
                data=_folder("--data", evaluation.data) or "", model=_folder("--model", evaluation.model),
                limit=evaluation.limit,
                device=device.device, threads=device.threads)
            waiting.say("running jobs")
            status = sweeps.run_sweep(plan, output, hydra)
        elif overrides:
            raise AuroraError(f"--gather runs nothing, so it takes no overrides such as {overrides[0]!r}")
        result = sweeps.gather(output, repeated=repeat or ())
        result["tables"] = tables(result)
        written = draw(result, output)
    write_json(result) if json_output else _show(result)
    sys.stderr.write(f"written to {output}: {', '.join(['sweep.json', *(path.name for path in written)])}\n")
    return 1 if status or any(job["failure"] for job in result["jobs"]) else 0


def _folder(option: str, path: Path | None) -> str | None:
    """Its absolute path: jobs may run in another folder. AuroraError before any job runs where it is none."""
    if path is not None and not path.is_dir():
        raise AuroraError(f"{option} {path} is not a folder")
    return None if path is None else str(path.resolve())


def _show(result: Mapping[str, Any]) -> None:
    from aurora.evaluation.sweep.figures import label_of
    from aurora.terminal import stdout, table

    console = stdout()
    for axis, rows in result["tables"].items():
        names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
        shown = table(axis, *names)
        for row in rows:
            shown.add_row(row["value"], *(_spread(row["scores"].get(name)) for name in names))
        console.print(shown)
    for curve in result["curves"]:
        held = ", ".join(f"{100 * float(share):g} % of the peak from keep ratio {ratio:g}"
                         for share, ratio in curve["holds"].items() if ratio is not None)
        none = "the largest ratio is far below the peak" if any(point["mean"] > 0 for point in curve["points"]) else \
            "every score is 0"
        console.print(f"{label_of(curve['values']) or 'score'}: {held or none}")
    done = sum(job["score"] is not None for job in result["jobs"])
    console.print(f"{done} of {len(result['jobs'])} jobs have a score")
    for job in result["jobs"]:
        if job["failure"]:
            console.print(f"{label_of(job['values'])} ({job['folder']}): {job['failure']}")


def _spread(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['mean']:.1f} ± {found['deviation']:.1f}"
