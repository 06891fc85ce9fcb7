import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    *,
    results: Annotated[list[str], typer.Argument(metavar="RESULTS…", show_default=False, help=(
        "Outputs of `aurora eval`: folders, or their result.json."))],
    output: Annotated[Path, typer.Option(metavar="STEM", help="Where the page goes: STEM.html and STEM.md.")] = Path(
        "report"),
    compare: Annotated[bool, typer.Option("--compare", help=(
        "Compare two results item by item: the difference with its interval and p-values."))] = False,
) -> None:
    """Put results on one page, beside the numbers of the paper.

    A row per result, with its interval, what it depended on and what is missing; footnotes where the paper contradicts
    itself. Results that do not stand for the same thing are named.

    \b
    example:
      aurora report runs/anet runs/mvbench --output runs/report
      aurora report --compare runs/keep10 runs/keep50
    """
    from aurora.errors import AuroraError
    from aurora.evaluation.report import rows, write_report
    from aurora.evaluation.results import read_result
    from aurora.terminal import Waiting, stdout, table

    if compare and len(results) != 2:
        raise AuroraError(f"--compare takes two results, not {len(results)}")
    with Waiting("reading results"):
        read = [read_result(path) for path in results]
        written = write_report(read, output.with_suffix("") if output.suffix in (".html", ".md") else output,
                               compare=compare)
    shown = table("", "benchmark", "score", "95 % interval", "paper", "questions", numbers=("score", "paper"))
    for number, row in enumerate(rows(read)[0], 1):
        shown.add_row(str(number), f"{row.name}{f' ({row.options})' if row.options else ''}",
                      row.missing_score if row.score is None else f"{row.score:.2f}",
                      "–" if row.interval is None else f"{row.interval.low:.1f} – {row.interval.high:.1f}",
                      "–" if row.paper is None else f"{row.paper:.1f}", str(row.questions))
    stdout().print(shown)
    sys.stderr.write(f"written to {' and '.join(map(str, written))}\n")
