"""What a judge is asked, and how its verdict is read out of what it says.

The prompts in `judge_prompts.json` are those of the public suites word for word, since another wording is another
judge: `match` is the one of ActivityNet-QA, MovieChat-1K and VDC, `answer` the first step of VDC.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_PROMPTS: Mapping[str, Mapping[str, str]] = json.loads(
    Path(__file__).with_name("judge_prompts.json").read_text(encoding="utf-8"))
_STEPS = {"yes_no": ("match",), "vdc": ("answer", "match")}
KINDS = tuple(_STEPS)
"""The kinds of judging, which a benchmark names as `judge`."""

Messages = Sequence[Mapping[str, str]]


class Verdict(NamedTuple):
    """What a judge decided about an answer."""

    right: bool
    score: float | None  # 0 to 5; None where it gave none, or one outside


def messages(step: str, **facts: str) -> Messages:
    """What the judge is sent in a step, "match" or "answer", with these facts in it."""
    filled = {role: re.sub(r"\{(\w+)\}", lambda match: facts.get(match[1], match[0]), text)
              for role, text in _PROMPTS[step].items()}
    return [{"role": role, "content": filled[role]} for role in ("system", "user")]


def prompt_hash(kind: str) -> str:
    """SHA-256 of the texts that a kind of judging uses."""
    used = {step: _PROMPTS[step] for step in _STEPS[kind]}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


# Whatever the notation (JSON, a Python dict, YAML, emphasis, escaped quotes): a key, a sign, a value.
_SIGNS = r"[\\\"'“”‘’`*\s]*"
_QUOTE = r"\\?[\"'“”‘’]"
# a value in quotes ends with them, another one with a sign: "no way" and "yes and no" are none
_VALUE = (rf"[`*\s]*(?P<quote>{_QUOTE})?\s*(?P<said>yes|no|true|false)"
          rf"(?(quote)\s*[.!]?\s*{_QUOTE}|[`*]*(?=\s*(?:[,;.)}}\]\n]|$|score)|\s+[-–—(]))"
          rf"(?!\s*(?:,\s*)?(?:{_QUOTE})?(?:yes|no|or|and)\b|\s*[/|])")
_PRED = re.compile(rf"(?<![\w-])pred(?!\w){_SIGNS}[:=]{_VALUE}", re.IGNORECASE)
# in prose, or beside the right answer, a prediction is the answer that was judged
_PREDICTION = re.compile(rf"{_QUOTE}prediction{_QUOTE}\s*:{_VALUE}", re.IGNORECASE)
_ANSWER = re.compile(rf"answer{_SIGNS}[:=]", re.IGNORECASE)
_SCORE = re.compile(rf"(?<![\w-])score(?!\w){_SIGNS}[:=]{_SIGNS}(-?\d+(?:\.\d+)?)(?![\w.]*\d)", re.IGNORECASE)
_ALONE = re.compile(r"[\W_]*(yes|no)[\W_]*", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)


def said(text: str) -> str:
    """A judge's answer without what it thought aloud before."""
    text = _THOUGHT.sub("", text)
    return re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1].strip()


def read_verdict(text: str) -> Verdict | None:
    """The verdict that stands in a judge's answer; None where there is none, or several that contradict each other."""
    text = said(text)
    alone = _ALONE.fullmatch(text)
    found = {alone[1].lower()} if alone else {match["said"].lower() for match in _PRED.finditer(text)}
    if not found and not _ANSWER.search(text):
        found = {match["said"].lower() for match in _PREDICTION.finditer(text)}
    decided = {word in ("yes", "true") for word in found}
    if len(decided) != 1:
        return None
    scores = {float(match[1]) for match in _SCORE.finditer(text)}
    score = scores.pop() if len(scores) == 1 else None
    return Verdict(decided.pop(), score if score is not None and 0 <= score <= 5 else None)
