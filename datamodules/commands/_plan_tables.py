"""The tables of `aurora plan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aurora.terminal import stdout, table

from ._plan_stages import total

if TYPE_CHECKING:
    from rich.table import Table

MARK = {"measured": "", "published": "", "group": " ~", "unknown": " ?"}
# Makers round their counts, and some files are always gone.
ENOUGH = 0.98


def show(numbers: Mapping[str, Any], image_rate: float, video_rate: float) -> None:
    """A table per stage with what there is to say about it, then the paper's counts."""
    console = stdout()
    for name, stage in numbers["stages"].items():
        console.print(_stage(name, stage))
        for label, line in _lines(stage, image_rate, video_rate):
            console.print(f"  {label:<8} {line}")
        if stage["note"]:
            console.print("  " + stage["note"].strip().replace("\n", "\n  "), style="dim")
        console.print()
    for name, paper in numbers["tables"].items():
        console.print(_paper(name, paper))


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
    shown = table("dataset", "samples", "read", "visits", "tokens", "frames", "bytes",
                  title=f"{name}: what an epoch reads ({counted})")
    reads = stage["data"]["datasets"]
    for group in dict.fromkeys(read["group"] for read in reads):
        members = [read for read in reads if read["group"] == group]
        if group is not None:
            shown.add_row(group, *_figures(total(members)), style="bold")
        for read in members:
            shown.add_row(("  " if group else "") + read["dataset"] + MARK[read["counted"]], *_figures(read))
    shown.add_section()
    shown.add_row("all", *_figures(total(reads)), style="bold")
    return shown


def _figures(read: Mapping[str, Any]) -> list[str]:
    repeats = f"×{read['visits'] / read['samples']:.3g}" if read["samples"] else "–"
    return [f"{read['samples']:,}", repeats, f"{read['visits']:,}",
            *(short(read[key]) for key in ("tokens", "frames", "bytes"))]


def _lines(stage: Mapping[str, Any], image_rate: float, video_rate: float) -> Iterator[tuple[str, str]]:
    """What there is to say about a stage: a label and a sentence."""
    data, about = stage["data"], "about " if stage["published"] else ""
    size = total(data["datasets"])["bytes"]
    volume = "" if size is None else f"{short(size * stage['passes'])} bytes; "
    yield "steps", (f"{about}{stage['steps']:,}, each of {stage['global_batch']:,} {stage['batch_unit']}; "
                    f"{stage['passes']:.3g} epoch(s), keep ratio {stage['keep_ratio']:g}")
    yield "reads", (f"{volume}decoding takes at most {data['decode_core_hours']:,.1f} core hours, at {image_rate:g} "
                    f"megapixels of images and {video_rate:g} of video per core and second")
    if data["fill"] is not None:
        yield "rows", (f"{data['fill']['tokens']:.1%} of their tokens and {data['fill']['frames']:.1%} of their frames "
                       f"are taken, in {data['fill']['windows']} window(s) that were packed")
    held_out = stage["validation"]
    if held_out is not None:
        yield "checks", (f"{held_out['times']:,} times on {', '.join(held_out['datasets'])}: each time about "
                         f"{short(held_out['tokens'])} tokens and {short(held_out['frames'])} frames")
    if stage["published"]:
        assumed = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in data["assumed"].items())
        yield "assumed", f"per sample: {assumed}; ~ only the group was counted, ? nobody counted"
    yield from _problems(data)
    if stage["training"] is not None:
        yield from _training(stage["training"])


def _problems(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if data["missing"]:
        yield "missing", ", ".join(data["missing"])
    for what, reason in (("dropped", "longer than a row, left out"), ("shrunk", "videos read with fewer frames")):
        named = [f"{read['dataset']} {read[what]:,}" for read in data["datasets"] if read[what]]
        if named:
            yield what, f"{reason}: {', '.join(named)}"
    fewer = [f"{read['dataset']} {read['held']:,} of {read['published']:,}" for read in data["datasets"]
             if read["counted"] == "measured" and read["held"] < ENOUGH * (read["published"] or 0)]
    if fewer:
        yield "fewer", f"samples than published: {', '.join(fewer)}"


def _training(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in numbers["memory"].items() if name != "total")
    price = "" if numbers["price"] is None else f", at a cost of {numbers['price']:,.0f}"
    yield "trains", (f"{numbers['flops'] / 1e18:,.1f} EFLOP: {numbers['hours']:,.1f} hours on {numbers['devices']} "
                     f"GPUs at {numbers['used']:.0%} of their peak{price}")
    yield "memory", (f"about {numbers['memory']['total'] / 2**30:.1f} GiB of each GPU ({parts})"
                     + ("" if numbers["fits"] else ": DOES NOT FIT"))


def _paper(name: str, paper: Mapping[str, Any]) -> Table:
    shown = table("group", "samples", "visits", "paper",
                  title=f"Table {name} of the paper, beside what the planned stages read in all epochs")
    groups = paper["groups"]
    sums = {key: sum(counts[key] for counts in groups.values()) for key in ("samples", "visits")}
    for group, counts in groups.items():
        shown.add_row(group, *map(_count, counts.values()))
    shown.add_section()
    shown.add_row("all", *map(_count, sums.values()), _count(paper["paper"]), style="bold")
    return shown


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
