"""Other libraries' objects from `_target_` entries, behind an allow-list."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from aurora.errors import AuroraError

ALLOWED = ("lightning.", "torch.optim.", "aurora.training.")
ENTRY_POINTS = "aurora.callback"  # the group in which an installed package names callbacks of its own


def instantiate(entry: Any) -> Any:
    """The object that `{_target_: dotted.path.Class, **options}` describes; options may hold further entries.

    Only classes below ALLOWED, or that an installed package names as entry points: both the path and the class that it
    leads to must lie below ALLOWED, because a module also exposes what it imports. AuroraError otherwise. Anything that
    is no such entry is returned as it is.
    """
    if isinstance(entry, Mapping):
        options = {key: instantiate(value) for key, value in entry.items()}
        target = options.pop("_target_", None)
        return options if target is None else _construct(target, options)
    if isinstance(entry, (list, tuple)):
        return [instantiate(value) for value in entry]
    return entry


def check_entries(where: str, entries: Mapping[str, Mapping[str, Any]], kind: type[Any]) -> None:
    """AuroraError unless every one of the named entries describes an object of `kind`. Nothing is made."""
    for name, entry in entries.items():
        target = entry.get("_target_")
        if target is None:
            raise AuroraError(f"{where}.{name} has no _target_, which names a class of Lightning's or of ours")
        if not issubclass(resolve(target), kind):
            raise AuroraError(f"{where}.{name}: {target} is not a {kind.__name__}")


def resolve(target: Any) -> type[Any]:
    """The class behind an allowed dotted path. AuroraError for anything else."""
    if isinstance(target, str) and target in _named_by_packages():
        return _of_package(target)
    if not isinstance(target, str) or not target.startswith(ALLOWED):
        raise AuroraError(f"_target_ {target!r} is not allowed; it must start with {' or '.join(ALLOWED)}, or be what "
                          f"an installed package names as an entry point of the group {ENTRY_POINTS}")
    found = _lookup(target)
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not inspect.isclass(found) or not home.startswith(ALLOWED):
        raise AuroraError(f"_target_ {target!r} leads to {found!r}, which is no class of {' or '.join(ALLOWED)}")
    return found


def _named_by_packages() -> set[str]:
    return {entry.value.replace(":", ".") for entry in entry_points(group=ENTRY_POINTS)}


def _of_package(target: str) -> type[Any]:
    try:
        found = _lookup(target)
    except ImportError as error:
        raise AuroraError(f"_target_ {target!r} does not import: {error}") from error
    if not inspect.isclass(found):
        raise AuroraError(f"_target_ {target!r} leads to {found!r}, which is no class")
    return found


def _construct(target: Any, options: dict[str, Any]) -> Any:
    kind = resolve(target)
    try:
        return kind(**options)
    except (TypeError, ImportError) as error:
        raise AuroraError(f"_target_ {target}: {error}") from error


def _lookup(target: str) -> Any:
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name, None)
        return found
    return None
