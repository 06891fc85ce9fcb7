"""Other libraries' objects from `_target_` entries, behind an allow-list."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from aurora.errors import AuroraError

T = TypeVar("T")
ALLOWED = ("lightning.", "torch.optim.", "aurora.training.")
ENTRY_POINTS = "aurora.callback"  # the group in which an installed package names callbacks of its own


def instantiate(entry: Any) -> Any:
    """The object that `{_target_: dotted.path.Class, **options}` describes; options may hold further entries.

    Only classes below ALLOWED, or that an installed package names as entry points: both the path and the class that it
    leads to must lie below ALLOWED, because a module also exposes what it imports. AuroraError otherwise. Anything that
    is not such an entry is returned as it is.
    """
    if isinstance(entry, Mapping):
        options = {key: instantiate(value) for key, value in entry.items()}
        target = options.pop("_target_", None)
        return options if target is None else construct(f"_target_ {target}", resolve(target), **options)
    if isinstance(entry, (list, tuple)):
        return [instantiate(value) for value in entry]
    return entry


def construct(where: str, make: Callable[..., T], /, *facts: Any, **options: Any) -> T:
    """What a class or function makes of options. AuroraError that begins with `where` when it raises anything."""
    try:
        return make(*facts, **options)
    except Exception as error:
        raise AuroraError(f"{where}: {' '.join(str(error).split())}") from error


def check_entries(where: str, entries: Mapping[str, Mapping[str, Any]], kind: type[Any]) -> None:
    """AuroraError unless every one of the named entries describes an object of `kind`. Nothing is made."""
    for name, entry in entries.items():
        target = entry.get("_target_")
        if target is None:
            raise AuroraError(f"{where}.{name} has no _target_, which names a class of Lightning's or of ours")
        resolve(target, f"{where}.{name}: ", kind)


def resolve(target: Any, where: str = "", wanted: type[Any] = object) -> type[Any]:
    """The class behind an allowed dotted path. AuroraError for anything else, beginning with `where` for a class that
    is not `wanted`."""
    by_package = target in [entry.value.replace(":", ".") for entry in entry_points(group=ENTRY_POINTS)]
    if not isinstance(target, str) or not (by_package or target.startswith(ALLOWED)):
        raise AuroraError(f"_target_ {target!r} is not allowed; it must start with {' or '.join(ALLOWED)}, or be what "
                          f"an installed package names as an entry point of the group {ENTRY_POINTS}")
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise AuroraError(f"_target_ {target!r} cannot be imported: {error}") from error
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not inspect.isclass(found) or not (by_package or home.startswith(ALLOWED)):
        allowed = "" if by_package else f" of {' or '.join(ALLOWED)}"
        raise AuroraError(f"_target_ {target!r} leads to {found!r}, which is not a class{allowed}")
    if not issubclass(found, wanted):
        raise AuroraError(f"{where}{target} is not a {wanted.__name__}")
    return found
