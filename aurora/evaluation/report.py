"""One page of results beside what was published, as HTML and as Markdown."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aurora.evaluation.record import describe
from aurora.evaluation.results import (
    Result,
    apart,
    compared,
    default_options,
    frames,
    other_frames,
    setting_differences,
)
from aurora.evaluation.statistics import FEWEST, RESAMPLES, Comparison, Interval
from aurora.files import replace_file

_FOLDER = Path(__file__).parent
_PUBLISHED: Mapping[str, Any] = yaml.safe_load((_FOLDER / "published.yaml").read_text(encoding="utf-8"))
_HASH = 12  # characters of a hash that are shown
_WHOLE_HASH = re.compile(rf"[0-9a-f]{{{_HASH},}}")


class Family(NamedTuple):
    """Part of a row."""

    name: str
    n: int | None
    score: float | None  # percent, as are all scores of this page
    interval: Interval | None
    chance: float | None
    paper: float | None


class Open(NamedTuple):
    """How much the answers to open questions share with the right ones, in percent."""

    name: str
    n: int
    exact_match: float | None
    token_f1: float | None
    bleu_1: float | None
    bleu_4: float | None


class Row(NamedTuple):
    """A result as the page shows it."""

    name: str
    options: str
    metric: str
    questions: int
    score: float | None
    missing_score: str  # why there is none
    interval: Interval | None
    compat: float | None
    paper: float | None
    where: str  # in the paper
    notes: list[int]  # numbers of footnotes
    differs: list[str]  # from the paper's protocol
    others: Mapping[str, object]
    counts: list[tuple[str, int]]  # what is not as it should be, and how often
    families: list[Family]
    open: list[Open]  # by family, and of all
    depends: list[tuple[str, str]]
    path: str


class Versus(NamedTuple):
    """A comparison of two runs."""

    first: str
    second: str
    settings: list[str]
    caveat: str | None
    rows: Mapping[str, Comparison]


def write_report(results: Sequence[Result], stem: str | Path, *, compare: bool = False) -> list[Path]:
    """Writes STEM.html and STEM.md. With `compare` there are two results, which are compared item by item; AuroraError
    when they cannot be."""
    page = _page(results, compare=compare)
    written = []
    for kind in ("html", "md"):
        environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=kind == "html", trim_blocks=True,
                                  lstrip_blocks=True, undefined=StrictUndefined)
        environment.filters |= {"number": _number, "between": _between, "cell": _cell, "p": _p}
        path = Path(f"{stem}.{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, environment.get_template(f"report.{kind}.j2").render(page).encode())
        written.append(path)
    return written


def rows(results: Sequence[Result]) -> tuple[list[Row], list[str]]:
    """A row per result, and the footnotes that they refer to."""
    notes: list[str] = []
    return [_row(result, notes) for result in results], notes


def _page(results: Sequence[Result], *, compare: bool) -> dict[str, Any]:
    made, notes = rows(results)
    versus = None
    if compare:
        first, second = results
        versus = Versus(str(first.path), str(second.path), setting_differences(first, second),
                        other_frames(first, second), compared(first, second))
    return {"rows": made, "notes": notes, "versus": versus, "resamples": RESAMPLES, "fewest": FEWEST,
            "apart": [f"Rows {_listed(found.rows)} are not comparable: {'; '.join(found.reasons)}."
                      for found in apart(results)]}


def _listed(rows: Sequence[Sequence[int]]) -> str:
    """Such as "1, (2, 5) and 3", where 2 and 5 are comparable."""
    *others, last = [f"({', '.join(map(str, same))})" if len(same) > 1 else str(same[0]) for same in rows]
    return f"{', '.join(others)} and {last}"


# ---- a row ---------------------------------------------------------------------------------------------------------


def _row(result: Result, notes: list[str]) -> Row:
    facts, paper = result.facts, _published(result)
    numbers = []
    for key in paper.get("notes", ()):
        text = " ".join(_PUBLISHED["notes"][key].split())
        notes.extend([text] if text not in notes else [])
        numbers.append(notes.index(text) + 1)
    compat = facts.get("lmms_compat") or {}
    reason = "to be judged" if facts.get("judge_needed") and "judge" not in facts else "none"
    interval = None if facts["score"] is None else result.interval()
    return Row(result.name, _options(result), facts["metric"], result.questions, facts["score"],
               facts.get("not_scored", reason), interval, compat.get("score"), paper.get("score"),
               paper.get("where", ""), numbers, _differs(result, paper), paper.get("others", {}), list(_counts(facts)),
               list(_families(result, paper.get("families", {}))), list(_open(facts)), list(_depends(result)),
               str(result.path))


def _published(result: Result) -> Mapping[str, Any]:
    """What was published about just this; empty where nothing was."""
    options = {**default_options(result.name), **result.options}
    return next((row for row in _PUBLISHED["rows"] if row["benchmark"] == result.name and all(
        options.get(key) == value for key, value in row.get("options", {}).items())), {})


def _options(result: Result) -> str:
    """What is asked of a benchmark, where that is not its default."""
    usual = default_options(result.name)
    return ", ".join(f"{key} {value}" for key, value in result.options.items() if usual.get(key) != value)


def _differs(result: Result, paper: Mapping[str, Any]) -> list[str]:
    """In what a result was not made as the paper's number was."""
    if "score" not in paper and "families" not in paper:
        return []
    facts = result.facts
    found = []
    sampling = facts.get("sampling")
    wanted = {key: value for key, value in (sampling or {}).items() if key != "max_frames" and value is not None}
    if "sampling" in paper and wanted != paper["sampling"]:
        found.append(f"{frames(sampling)} instead of {frames(paper['sampling'])}")
    if facts.get("limit") is not None:
        found.append(f"only {result.questions} questions")
    for what in ("videos", "tasks"):
        if facts.get(f"missing_{what}"):
            found.append(f"{len(facts[f'missing_{what}'])} {what} missing")
    order = facts.get("sort")
    if isinstance(order, Mapping) and (order.get("name") != "size" or order.get("order", "ascending") != "ascending"):
        found.append(f"order {_part(order)} instead of size, ascending")
    return found


def _counts(facts: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for what in ("videos", "tasks"):
        missing = facts.get(f"missing_{what}")
        if isinstance(missing, list) and missing:
            yield f"{what} missing", len(missing)
    for name, count in (("asked behind the end of the video", len(facts.get("behind_end", ()))),
                        ("failed", facts.get("failed", 0)), ("named no option", facts.get("unparsed", 0)),
                        ("empty", facts.get("empty", 0)), ("unjudged", facts.get("unjudged", 0))):
        if count:
            yield name, count


def _families(result: Result, paper: Mapping[str, float]) -> Iterator[Family]:
    families = result.facts["families"]
    if len(families) < 2:
        return
    for name, row in families.items():
        share, chance = row.get("accuracy"), row.get("chance")
        yield Family(name, row.get("n"), None if share is None else 100 * share, result.interval(name),
                     None if chance is None else 100 * chance, paper.get(name))


def _open(facts: Mapping[str, Any]) -> Iterator[Open]:
    found = facts.get("open", {})
    for name, row in {**found.get("families", {}), "all": found}.items() if found.get("n") else ():
        shares = (row.get(key) for key in Open._fields[2:])
        yield Open(name, row["n"], *(None if share is None else 100 * share for share in shares))


def _depends(result: Result) -> Iterator[tuple[str, str]]:
    """Everything that a result depended on, as name and value."""
    facts = result.facts
    yield "model", _short(facts.get("model")) or "not recorded"
    yield "frames", frames(facts.get("sampling"))
    if "one_pass" in facts:
        yield "online", "one pass over each video" if facts["one_pass"] else "read again for every moment"
    for name, key in (("keep ratio", "keep_ratio"), ("merge", "merge"), ("order", "sort"), ("prompt", "prompt"),
                      ("skip", "skip"), ("reader", "reader"), ("dtype", "dtype"), ("quantize", "quantize")):
        if facts.get(key) is not None:
            yield name, _part(facts[key])
    yield "scorer", str(facts["scorer"])
    if isinstance(protocol := facts.get("protocol"), Mapping):
        yield "answers", _part({key: value for key, value in protocol.items() if value is not None})
    if facts.get("parallel") is not None:
        yield "questions in a pass", f"up to {facts['parallel']}"
    if isinstance(judge := facts.get("judge"), Mapping):
        served = ", ".join(name for name in judge.get("served", ()) if name != judge.get("model"))
        yield "judge", f"{judge.get('model')}{f' ({served})' if served else ''} at {judge.get('base_url')}"
        yield "judge's prompt", _short(judge.get("prompt"))
        yield "judge's parameters", _part(judge.get("parameters") or {}) or "none"
    yield "seeds", _part({**_seeds(facts), "bootstrap": 0})
    limit = "" if facts.get("limit") is None else f", limit {facts['limit']}"
    yield "questions", f"{result.questions}{limit}, of {_short(facts.get('questions'))}"
    yield "versions", _part({name: _short(value) if name == "revision" else value
                             for name, value in facts["versions"].items()})
    yield "hardware", describe(facts["hardware"])
    if result.problem is not None:
        yield "no interval", result.problem


def _seeds(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was drawn at random."""
    judge = (facts.get("judge") or {}).get("parameters") or {}
    found = {"benchmark": facts["benchmark"].get("seed"), "judge": judge.get("seed"),
             "order": (facts.get("sort") or {}).get("seed"), **(facts.get("seeds") or {})}
    return {name: seed for name, seed in found.items() if seed is not None}


def _part(value: object) -> str:
    """A part and its options, or whatever else a setting is, in a few words."""
    if not isinstance(value, Mapping):
        return str(value)
    name = [str(value["name"])] if "name" in value else []
    return ", ".join([*name, *(f"{key} {one}" for key, one in value.items() if key != "name" and one is not None)])


def _short(name: object) -> str:
    """The beginning of a hash, also of one behind a +, as an adapter's; all of any other name."""
    return "+".join(part[:_HASH] if _WHOLE_HASH.fullmatch(part) else part for part in str(name).split("+")) \
        if name else ""


# ---- how values are written ----------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _between(interval: Interval | None, form: str = "%.1f") -> str:
    return "–" if interval is None else f"{form} – {form}" % interval


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cell(text: object) -> str:
    """Text that stands in a table of Markdown."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
