"""The tables of `aurora plan`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ._plan_stages import total

COLUMNS = ("samples", "read", "visits", "tokens", "frames", "bytes")
MARK = {"measured": "", "published": "", "group": " ~", "unknown": " ?"}
# Where nobody looks at a terminal, lines are as long as these tables are.
WIDTH = 110
# Makers round their counts, and some files are always gone.
ENOUGH = 0.98


def show(numbers: Mapping[str, Any], image_rate: float, video_rate: float) -> None:
    """A table per stage with what there is to say about it, then the paper's counts."""
    seen = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not seen, width=None if seen else WIDTH)
    for name, stage in numbers["stages"].items():
        console.print(_stage(name, stage))
        for line in [*_lines(stage, image_rate, video_rate), *_training(stage["training"])]:
            console.print(f"  {line}")
        if stage["note"]:
            console.print("  " + stage["note"].strip().replace("\n", "\n  "), style="dim")
        console.print()
    for name, table in numbers["tables"].items():
        console.print(_paper(name, table))


def short(number: float | None) -> str:
    """1234567 → 1.23M; unknown is a dash."""
    if number is None:
        return "–"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def _stage(name: str, stage: Mapping[str, Any]) -> Table:
    counted = "published counts, assumed lengths" if stage["published"] else "measured shards"
    table = _table(f"{name}: what an epoch reads ({counted})", "dataset", COLUMNS)
    reads = stage["data"]["datasets"]
    groups = dict.fromkeys(read["group"] for read in reads)
    for group in groups:
        members = [read for read in reads if read["group"] == group]
        if group is not None:
            table.add_row(group, *_figures(total(members)), style="bold")
        for read in members:
            table.add_row(("  " if group else "") + read["dataset"] + MARK[read["counted"]], *_figures(read))
    table.add_section()
    table.add_row("all", *_figures(total(reads)), style="bold")
    return table


def _figures(read: Mapping[str, Any]) -> list[str]:
    repeats = f"×{read['visits'] / read['samples']:.3g}" if read["samples"] else "–"
    return [f"{read['samples']:,}", repeats, f"{read['visits']:,}",
            *(short(read[key]) for key in ("tokens", "frames", "bytes"))]


def _lines(stage: Mapping[str, Any], image_rate: float, video_rate: float) -> list[str]:
    data, about = stage["data"], "about " if stage["published"] else ""
    size = total(data["datasets"])["bytes"]
    volume = "" if size is None else f"{short(size * stage['passes'])} bytes; "
    lines = [
        f"steps    {about}{stage['steps']:,}, each of {stage['global_batch']:,} {stage['batch_unit']}; "
        f"{stage['passes']:.3g} epoch(s), keep ratio {stage['keep_ratio']:g}",
        f"reads    {volume}decoding takes at most {data['decode_core_hours']:,.1f} core hours, at {image_rate:g} "
        f"megapixels of images and {video_rate:g} of video per core and second",
    ]
    if data["fill"] is not None:
        lines.append(f"rows     {data['fill']['tokens']:.1%} of their tokens and {data['fill']['frames']:.1%} of their "
                     f"frames are taken, in {data['fill']['windows']} window(s) that were packed")
    held_out = stage["validation"]
    if held_out is not None:
        lines.append(f"checks   {held_out['times']:,} times on {', '.join(held_out['datasets'])}: each time about "
                     f"{short(held_out['tokens'])} tokens and {short(held_out['frames'])} frames")
    if stage["published"]:
        assumed = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in data["assumed"].items())
        lines.append(f"assumed  per sample: {assumed}; ~ only the group was counted, ? nobody counted")
    return lines + _problems(data)


def _problems(data: Mapping[str, Any]) -> list[str]:
    lines = [f"missing  {', '.join(data['missing'])}"] if data["missing"] else []
    for what, reason in (("dropped", "longer than a row, left out"), ("shrunk", "videos read with fewer frames")):
        named = [f"{read['dataset']} {read[what]:,}" for read in data["datasets"] if read[what]]
        if named:
            lines.append(f"{what:<8} {reason}: {', '.join(named)}")
    fewer = [f"{read['dataset']} {read['held']:,} of {read['published']:,}" for read in data["datasets"]
             if read["counted"] == "measured" and read["held"] < ENOUGH * (read["published"] or 0)]
    return [*lines, f"fewer    samples than published: {', '.join(fewer)}"] if fewer else lines


def _paper(name: str, table: Mapping[str, Any]) -> Table:
    shown = _table(f"Table {name} of the paper, beside what the planned stages read in all epochs", "group",
                   ("samples", "visits", "paper"))
    for group, numbers in table["groups"].items():
        shown.add_row(group, *(_count(numbers[key]) for key in ("samples", "visits", "paper")))
    shown.add_section()
    sums = (sum(numbers[key] for numbers in table["groups"].values()) for key in ("samples", "visits"))
    shown.add_row("all", *map(_count, sums), _count(table["paper"]), style="bold")
    return shown


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _training(numbers: Mapping[str, Any] | None) -> list[str]:
    """The same for people; nothing where no hardware was named."""
    if numbers is None:
        return []
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in numbers["memory"].items() if name != "total")
    price = "" if numbers["price"] is None else f", at a cost of {numbers['price']:,.0f}"
    return [
        f"trains   {numbers['flops'] / 1e18:,.1f} EFLOP: {numbers['hours']:,.1f} hours on {numbers['devices']} GPUs at "
        f"{numbers['used']:.0%} of their peak{price}",
        f"memory   about {numbers['memory']['total'] / 2**30:.1f} GiB of each GPU ({parts})"
        + ("" if numbers["fits"] else ": DOES NOT FIT"),
    ]
