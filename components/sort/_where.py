"""The option that all sorters share."""

from __future__ import annotations

from typing import Literal

from .._options import one_of

Where = Literal["layer", "final"]


def check_where(name: str, where: Where) -> Where:
    """`where`, or AuroraError when it is neither of the two."""
    one_of(f"sort {name!r}", "where", where, ("layer", "final"))
    return where
