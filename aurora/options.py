"""Whether what a config says fits an annotation: checked by pydantic, once, where it enters.

A config object is a frozen dataclass. Its fields say what they take (`Annotated[int, Ge(1)] | None`), `__post_init__`
raises FieldError where fields do not fit each other, and a static method `expand`, if there is one, turns a short
form (a number, a name) into the mapping that it stands for.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Real
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt, MinLen

from aurora.errors import AuroraError, suggest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", NoneType: "null"}
_CONTAINERS = (Mapping, dict, Sequence, list, tuple)


class FieldError(AuroraError):
    """A field of a config object that does not fit; `key` names it below the object, "" is the object itself."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}".strip())
        self.key = key


def kinds_of(part: type[Any]) -> dict[str, Any]:
    """The annotations of a constructor's parameters; none when they cannot be looked up outside of type checking."""
    try:
        return get_type_hints(part.__init__, include_extras=True)
    except NameError:
        return {}


def check_kind(where: str, given: Any, kind: Any) -> None:
    """AuroraError unless `given` fits the annotation; a class that is not a plain kind of value is not judged."""
    read_fields(kind, where, given)


def require_number(name: str, given: object) -> None:
    """AuroraError unless an argument is a number, be it one of numpy's."""
    if not isinstance(given, Real) or isinstance(given, bool):
        raise AuroraError(f"{name} must be a number, not {given!r}")


def read_fields(kind: type[T], where: str, entry: Any) -> T:
    """The dataclass that a mapping of a config describes. AuroraError names the key that is unknown, missing or wrong.

    A list becomes a tuple where the dataclass holds one.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(entry)  # type: ignore[no-any-return, arg-type]
    except ValidationError as error:
        wrong = [_find(where, entry, kind, one["loc"])._replace(type=one["type"], cause=one.get("ctx", {}).get("error"))
                 for one in error.errors(include_url=False)]
    # A misspelt key is also a missing one; of the kinds of a union, the one that was followed furthest was meant.
    order = {"extra_forbidden": 0, "missing": 1}
    first = min(wrong, key=lambda one: (order.get(one.type, 2), -one.depth))
    missing = [one.last for one in wrong if first.type == one.type == "missing" and one.path == first.path]
    raise AuroraError(_explain(first, missing if is_dataclass(_expanded(first.kind, first.given)[0]) else []))


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(_strict(kind))


def _strict(kind: Any) -> Any:
    """The annotation for pydantic: no number from a string or from true, and a dataclass from exactly its keys."""
    from pydantic import AllowInfNan, Strict

    origin, inside = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _from_mapping(kind)
    if origin is Annotated:
        return Annotated[(_strict(inside[0]), *inside[1:])]
    if origin in (Union, UnionType):
        return Union[tuple(_strict(one) for one in inside)]  # noqa: UP007 - of a computed number of kinds
    if origin in _CONTAINERS:
        return origin[tuple(one if one is Ellipsis else _strict(one) for one in inside)]
    if kind is float:
        return Annotated[float, Strict(), AllowInfNan(False)]  # an infinite rate teaches nothing
    if kind in (int, str, bool):
        return Annotated[kind, Strict()]
    return kind if kind is NoneType or kind is None or origin is Literal else Any


def _from_mapping(kind: Any) -> Any:
    from pydantic import ConfigDict, WrapValidator, with_config
    from typing_extensions import NotRequired, TypedDict

    kinds = get_type_hints(kind, include_extras=True)
    needed = {item.name for item in fields(kind) if item.default is item.default_factory is MISSING}
    keys = {item.name: _strict(kinds[item.name]) if item.name in needed else NotRequired[_strict(kinds[item.name])]
            for item in fields(kind) if item.init}
    keyed = with_config(ConfigDict(extra="forbid"))(TypedDict(kind.__name__, keys))  # type: ignore[operator]
    expand: Callable[[Any], Any] = getattr(kind, "expand", lambda given: given)

    def make(given: Any, read: Callable[[Any], dict[str, Any]]) -> Any:
        return given if isinstance(given, kind) else kind(**read(expand(given)))

    return Annotated[keyed, WrapValidator(make)]


class _Wrong(NamedTuple):
    """Where something does not fit, what stands there, and what would."""

    path: str
    depth: int
    given: Any
    kind: Any
    above: Any = None  # the kind that the path's last key lies in
    last: str = ""  # the end of pydantic's `loc`
    type: str = ""  # pydantic's name of the error
    cause: AuroraError | None = None


def _find(where: str, given: Any, kind: Any, loc: Sequence[int | str]) -> _Wrong:
    """Follows pydantic's `loc`, in which names of a union's kinds stand between keys."""
    path, depth, above = where, 0, None
    for key in loc:
        known, below = _expanded(kind, given)
        if isinstance(below, Mapping) and key in below:
            path = f"{path}.{key}" if path else str(key)
        elif isinstance(below, (list, tuple)) and isinstance(key, int) and key < len(below):
            path = f"{path}[{key}]"
        else:
            continue
        depth, above, given, kind = depth + 1, known, below[key], _below(known, key)
    return _Wrong(path, depth, given, kind, above, str(loc[-1]) if loc else "")


def _expanded(kind: Any, given: Any) -> tuple[Any, Any]:
    """Of a union the kind that has something below it, and what a short form stands for."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        wanted = Mapping if isinstance(given, Mapping) else Sequence
        kind = next((one for one in get_args(kind) if is_dataclass(one) or _is_a(get_origin(one), wanted)), kind)
    try:
        return kind, getattr(kind, "expand", lambda same: same)(given)
    except FieldError:  # it is what is wrong
        return kind, given


def _is_a(origin: Any, wanted: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, wanted)  # that of a Literal is no class


def _below(kind: Any, key: str | int) -> Any:
    if is_dataclass(kind):
        return get_type_hints(kind, include_extras=True).get(str(key), Any)
    inside = [one for one in get_args(kind) if one is not Ellipsis]
    if not inside:
        return Any
    return inside[int(key)] if isinstance(key, int) and key < len(inside) else inside[-1]


def _explain(wrong: _Wrong, missing: Sequence[str]) -> str:
    where = wrong.path or "the config"
    if isinstance(wrong.cause, FieldError):
        return f"{wrong.path}.{wrong.cause}".removeprefix(".") if wrong.cause.key else f"{where} {wrong.cause}"
    if wrong.cause is not None:
        return str(wrong.cause)
    if wrong.type == "extra_forbidden" or wrong.last == "[key]":
        above, _, key = wrong.path.rpartition(".")
        known = [item.name for item in fields(wrong.above)] if is_dataclass(wrong.above) else \
            get_args(get_args(wrong.above)[0])
        return f"{above or 'the config'} has no key {key!r}.{suggest(key, known)}"
    if missing:
        return f"{where} lacks {', '.join(missing)}"
    if get_origin(wrong.kind) is Literal:
        return f"{where} {wrong.given!r} is unknown.{suggest(str(wrong.given), map(str, get_args(wrong.kind)))}"
    return f"{where} is {wrong.given!r}; it must be {_described(wrong.kind)}"


def _described(kind: Any) -> str:
    """What an annotation takes, in words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _described(inside[0]) + _ranges(inside[1:])
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin in (Union, UnionType):
        return " or ".join(_described(one) for one in inside)
    if is_dataclass(kind):
        return f"a mapping of {', '.join(item.name for item in fields(kind))}"
    if origin in (Mapping, dict):
        return "a mapping" if inside[1] is Any else f"a mapping, each value {_described(inside[1])}"
    if origin in _CONTAINERS:
        number = f" of {len(inside)}" if origin is tuple and Ellipsis not in inside else ""
        return f"a list{number}" if inside[0] is Any else f"a list{number}, each {_described(inside[0])}"
    return _NAMES.get(kind, str(kind))


def _ranges(limits: Sequence[Any]) -> str:
    """' above 0 and at most 1' of Gt(0) and Le(1)."""
    words = {Gt: ("gt", "above"), Ge: ("ge", "≥"), Lt: ("lt", "below"), Le: ("le", "at most"), MinLen: ("", "")}
    named = [(words[type(limit)], limit) for limit in limits if type(limit) in words]
    shown = [f"{word} {getattr(limit, key):,}" if key else "not empty" for (key, word), limit in named]
    return f" {' and '.join(shown)}" if shown else ""
