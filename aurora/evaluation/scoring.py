"""Scores of answers: a strict reader of choices, intervals, and word overlap for open questions."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

# `(B)`, `(b) red`, `B)`, `B.`, `B: red`; a bare letter only when nothing follows, since "A" is also an article.
_LETTER = re.compile(r"\((?P<braced>[A-Za-z])\)|(?P<marked>[A-Z])[.):](?=\s|$)|(?P<bare>[A-Z])$")
_LEAD = re.compile(r"(?:the )?(?:best |correct )?(?:answer|option)(?: is)?\s*:?\s*", re.IGNORECASE)
_BRACED = re.compile(r"\(([A-Za-z])\)")


def chosen_option(answer: str, options: Sequence[str]) -> int | None:
    """The index of the option that an answer names, by its letter or by its whole text and nothing else; None when it
    names none, several, or one that does not exist."""
    text = answer.strip()
    lead = _LEAD.match(text)
    text = text[lead.end():] if lead else text
    match = _LETTER.match(text)
    if match is None:
        said = [index for index, option in enumerate(options) if _same(text, option)]
        return said[0] if len(said) == 1 else None
    letter = next(found for found in match.groups() if found).upper()
    named = {letter, *(other.upper() for other in _BRACED.findall(text))}
    index = ord(letter) - ord("A")
    return index if len(named) == 1 and index < len(options) else None


def _same(text: str, option: str) -> bool:
    """Whether two texts differ in nothing but case, white space and a closing full stop."""
    plain, wanted = (" ".join(part.casefold().split()).removesuffix(".") for part in (text, option))
    return plain == wanted != ""


def wilson(right: int, asked: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) when nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares them."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def exact_match(answer: str, truth: str) -> bool:
    """Whether the words are the same."""
    return words(answer) == words(truth)


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of the precision and recall of words."""
    given, wanted = words(answer), words(truth)
    shared = sum((Counter(given) & Counter(wanted)).values())
    if shared == 0:
        return float(given == wanted)
    return 2 * shared / (len(given) + len(wanted))
