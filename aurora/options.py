"""Whether what a config says is of the kind that an annotation asks for: checked once, where it enters.

What a kind cannot say (a range, a multiple) stays with the part that takes the option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from aurora.errors import AuroraError, suggest

T = TypeVar("T")
_TOLD = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}


def kinds_of(part: type[Any]) -> dict[str, Any]:
    """The annotations of a constructor's parameters; none when they cannot be looked up outside of type checking."""
    try:
        return get_type_hints(part.__init__)
    except NameError:
        return {}


def check_kind(where: str, given: Any, kind: Any) -> None:
    """AuroraError unless `given` fits the annotation; one that is no plain kind of value is not judged."""
    if _fits(given, kind):
        return
    if get_origin(kind) is Literal:
        raise AuroraError(f"{where} {given!r} is unknown.{suggest(str(given), map(str, get_args(kind)))}")
    raise AuroraError(f"{where} is {given!r}; it must be {_told(kind)}")


def read_fields(kind: type[T], where: str, entry: Any) -> T:
    """The dataclass that a mapping of a config describes. AuroraError names the key that is unknown, missing or wrong.

    A list becomes a tuple, as frozen classes hold them.
    """
    check_kind(where, entry, Mapping[str, Any])
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for key in entry:
        if key not in known:
            raise AuroraError(f"{where} has no key {key!r}.{suggest(key, known)}")
    missing = [key for key, item in known.items()
               if key not in entry and item.default is MISSING and item.default_factory is MISSING]
    if missing:
        raise AuroraError(f"{where} lacks {', '.join(missing)}")
    kinds = get_type_hints(kind)
    for key, value in entry.items():
        check_kind(f"{where}.{key}", value, kinds[key])
    return kind(**{key: tuple(value) if get_origin(kinds[key]) is tuple else value for key, value in entry.items()})


def _fits(given: Any, kind: Any) -> bool:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return given in inside
    if origin in (Union, UnionType):
        return any(_fits(given, one) for one in inside)
    if kind in (int, float):
        # true is an int to Python, 1 is a number wherever 1.0 is, and an infinite rate teaches nothing
        whole = isinstance(given, int) and not isinstance(given, bool)
        return whole or (kind is float and isinstance(given, float) and math.isfinite(given))
    if kind in _TOLD:
        return isinstance(given, kind)
    if origin in (Mapping, dict):
        return isinstance(given, Mapping) and all(_fits(value, inside[1]) for value in given.values())
    if origin in (Sequence, list, tuple):
        return isinstance(given, (list, tuple)) and all(_fits(value, inside[0]) for value in given)
    return True


def _told(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin in (Union, UnionType):
        return " or ".join(_told(one) for one in inside)
    if origin in (Mapping, dict):
        return "a mapping" if inside[1] is Any else f"a mapping, each value {_told(inside[1])}"
    if origin in (Sequence, list, tuple):
        return "a list" if inside[0] is Any else f"a list, each {_told(inside[0])}"
    return _TOLD.get(kind, str(kind))
