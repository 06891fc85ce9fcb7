"""The works of `aurora bench data`: building shards, reading them, decoding videos."""

from __future__ import annotations

import importlib

from aurora.bench.case import Case, Settings

WORKS: tuple[str, ...] = ("data_building", "data_decoding", "data_reading")
"""Modules of `aurora.bench`, each with a function `cases(settings)`."""


def data(settings: Settings) -> list[Case]:
    """The cases of every work."""
    return [case for name in WORKS for case in importlib.import_module(f"aurora.bench.{name}").cases(settings)]
