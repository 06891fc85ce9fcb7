"""A result as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aurora.terminal import table

SHOWN_FAILURES = 5

Row = Mapping[str, Any]


def render(result: Row) -> RenderableType:
    """Accuracy by family against chance and wrong videos, open questions below, failures last."""
    parts: list[RenderableType] = []
    if result["n"]:
        score = result.get("protocol", {}).get("score", "text").replace("_", " ")
        parts.append(_table(f"Multiple choice by {score}, in percent", _CHOICE, result,
                            caption="wrong video: asked about a video for which another answer is correct"))
    if result["open"]["n"]:
        parts.append(_table("Open questions", _OPEN, result["open"]))
    if result["unparsed"]:
        parts.append(Text(f"{result['unparsed']} of {result['n']} answers named no option and count as wrong."))
    failures = result["failures"]
    if failures:
        lines = [f"{len(failures)} questions could not be asked and count as wrong:"]
        lines += [f"  {failed['id']} ({failed['shown']} video {failed['video']}): {failed['reason']}"
                  for failed in failures[:SHOWN_FAILURES]]
        if len(failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(failures) - SHOWN_FAILURES} more")
        parts.append(Text("\n".join(lines), style="red"))
    return Group(*parts)


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: "–" if row[key] is None else f"{100 * row[key]:.1f}"


_CHOICE: Mapping[str, Callable[[Row], str]] = {
    "accuracy": _share("accuracy"), "95 % interval": lambda row: f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
    "chance": _share("chance"), "wrong video": _share("wrong_video_accuracy"),
}
_OPEN = {"exact match": _share("exact_match"), "word F1": _share("token_f1"), "BLEU-1": _share("bleu_1"),
         "BLEU-4": _share("bleu_4")}


def _table(title: str, columns: Mapping[str, Callable[[Row], str]], result: Row, caption: str | None = None) -> Table:
    """The families, and all of them together."""
    shown = table("family", "n", *columns, title=title)
    shown.caption, shown.caption_justify = caption, "left"
    for name, row in {**result["families"], "all": result}.items():
        if name == "all":
            shown.add_section()
        shown.add_row(name, str(row["n"]), *(cell(row) for cell in columns.values()),
                      style="bold" if name == "all" else "")
    return shown
