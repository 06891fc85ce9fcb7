"""A result as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aurora.terminal import table

SHOWN_FAILURES = 5


def render(result: Mapping[str, Any]) -> RenderableType:
    """Accuracy by family against chance and wrong videos, open questions below, failures last."""
    parts: list[RenderableType] = []
    if result["n"]:
        parts.append(_choices(result))
    if result["open"]["n"]:
        parts.append(_opens(result["open"]))
    if result["unparsed"]:
        parts.append(Text(f"{result['unparsed']} of {result['n']} answers named no option and count as wrong."))
    parts += [Text(line, style="red") for line in _failures(result)]
    return Group(*parts)


def _choices(result: Mapping[str, Any]) -> Table:
    shown = table("family", "n", "accuracy", "95 % interval", "chance", "wrong video",
                  title="Multiple choice, in percent")
    shown.caption = "wrong video: asked about a video for which another answer is correct"
    shown.caption_justify = "left"
    for name, row in result["families"].items():
        shown.add_row(name, *_choice_cells(row))
    shown.add_section()
    shown.add_row("all", *_choice_cells(result), style="bold")
    return shown


def _choice_cells(row: Mapping[str, Any]) -> list[str]:
    interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
    return [str(row["n"]), _percent(row["accuracy"]), interval, _percent(row["chance"]),
            _percent(row["wrong_video_accuracy"])]


def _opens(result: Mapping[str, Any]) -> Table:
    shown = table("family", "n", "exact match", "word F1", "BLEU-1", "BLEU-4", title="Open questions")
    for name, row in {**result["families"], "all": result}.items():
        shares = (row[key] for key in ("exact_match", "token_f1", "bleu_1", "bleu_4"))
        shown.add_row(name, str(row["n"]), *map(_percent, shares))
    return shown


def _failures(result: Mapping[str, Any]) -> list[str]:
    failures = result["failures"]
    if not failures:
        return []
    shown = [f"  {failed['id']} ({failed['shown']} video {failed['video']}): {failed['reason']}"
             for failed in failures[:SHOWN_FAILURES]]
    more = [f"  and {len(failures) - SHOWN_FAILURES} more"] if len(failures) > SHOWN_FAILURES else []
    return [f"{len(failures)} questions could not be asked and count as wrong:", *shown, *more]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
