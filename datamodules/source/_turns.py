"""Conversations in the forms that datasets use, brought into ours."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aurora.errors import BadSample

Conversation = list[dict[str, str]]
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "bot": "gpt",
             "chatgpt": "gpt", "system": "system"}


def conversation(told: Any) -> Conversation:
    """[{"from", "value"}, …] from a list of those, or of {"role", "content"}; BadSample for what makes no sense.

    What a system says is put before the next question. What is answered before anybody asked is left out, as is a
    question at the end that nobody answers.
    """
    if not isinstance(told, Sequence) or isinstance(told, (str, bytes)) or not told:
        raise BadSample("turns", f"conversations are {type(told).__name__}, not a list of turns")
    turns: Conversation = []
    system = ""
    for number, turn in enumerate(told):
        speaker, text = _turn(turn, number)
        if speaker == "system":
            system += text + "\n"
        elif not turns and speaker == "gpt":
            continue
        elif turns and turns[-1]["from"] == speaker:
            raise BadSample("turns", f"turn {number} is from {speaker} again")
        elif speaker == "gpt" and not text.strip():
            raise BadSample("text", f"turn {number} is an empty answer")
        else:
            turns.append({"from": speaker, "value": system + text})
            system = ""
    if len(turns) % 2:
        turns.pop()
    if not turns:
        raise BadSample("turns", "no question is answered")
    return turns


def asked(question: Any, answer: Any) -> Conversation:
    """One question and its answer. BadSample when one is no text."""
    return [{"from": "human", "value": text(question, "question")}, {"from": "gpt", "value": text(answer, "answer")}]


def text(told: Any, what: str) -> str:
    """A text that is not empty, or a number as one. BadSample for anything else."""
    if isinstance(told, (int, float)) and not isinstance(told, bool):
        told = str(told)
    if not isinstance(told, str) or not told.strip():
        raise BadSample("text", f"{what} is {str(told)[:80]!r}, no text")
    return told.strip()


def agreed(answers: Any) -> Any:
    """What most of several people answered, the first of those that are equally many; a single answer as it is."""
    if not isinstance(answers, Sequence) or isinstance(answers, str) or not answers:
        return answers
    return Counter(map(str, answers)).most_common(1)[0][0]


def chosen(options: Sequence[str], key: str) -> str:
    """One of several, the same for the same key, each about equally often."""
    return options[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(options)]


def _turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise BadSample("turns", f"turn {number} is no object")
    speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(value, str):
        raise BadSample("turns", f"turn {number}: from {speaker!r}, {type(value).__name__}; speakers are "
                                 f"{', '.join(_SPEAKERS)}, and what they say is a text")
    return _SPEAKERS[speaker], value
