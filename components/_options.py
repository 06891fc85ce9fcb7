"""Checks of options at the edge, in one wording."""

from __future__ import annotations

from typing import Any

from aurora.errors import AuroraError, suggest


def one_of(part: str, option: str, given: Any, known: tuple[Any, ...]) -> None:
    """AuroraError unless `given` is one of the known values."""
    if given not in known:
        hint = suggest(str(given), [str(value) for value in known])
        raise AuroraError(f"{part}: {option} {given!r} is unknown.{hint}")


def whole(part: str, option: str, given: Any, least: int = 1) -> None:
    """AuroraError unless `given` is an integer of at least `least`."""
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise AuroraError(f"{part}: {option} is {given!r}; an integer of at least {least} is right")


def switch(part: str, option: str, given: Any) -> None:
    """AuroraError unless `given` is true or false."""
    if not isinstance(given, bool):
        raise AuroraError(f"{part}: {option} is {given!r}; true or false is right")
