"""Overrides among the words of a command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from aurora.config import CONFIG_FOLDER, CONFIG_KEYS
from aurora.errors import AuroraError, suggest

_OVERRIDE = re.compile(r"(?:[+]{0,2}|~)(?P<root>[a-z_]+)(?:[.@/][\w.@/]*)?(?P<equals>=)?", re.IGNORECASE)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that are not overrides, and the overrides: KEY=VALUE, or ~KEY, with a key at the top of the config.

    AuroraError for a key that is nearly one of them: `keep_raito=0.5` is not meant as a question.
    """
    others: list[str] = []
    overrides: list[str] = []
    known = {*CONFIG_KEYS, *(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir())}
    for word in words:
        found = _OVERRIDE.match(word)
        if found is None or not (found["equals"] or word.startswith("~")):
            others.append(word)
        elif found["root"] in known:
            overrides.append(word)
        elif " " not in word and difflib.get_close_matches(found["root"], known, cutoff=0.7):
            raise AuroraError(f"{word!r}: the config has no {found['root']!r}.{suggest(found['root'], sorted(known))}")
        else:
            others.append(word)
    return others, overrides
