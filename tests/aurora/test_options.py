from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, MinLen

from aurora.errors import AuroraError
from aurora.options import FieldError, check_kind, kinds_of, read_fields
from aurora.registry import SLOTS


@dataclass(frozen=True)
class Limit:
    most: Annotated[int, Ge(1)]
    least: int = 0

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise FieldError("least", f"is {self.least}, above most")

    @staticmethod
    def expand(given: Any) -> Any:
        return {"most": given} if isinstance(given, int) else given


@dataclass(frozen=True)
class Recipe:
    rate: float
    betas: tuple[float, ...] = ()
    steps: int | None = None
    limit: Limit | None = None


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (1, float),
        (1, int),
        (None, int | None),
        ("a", Literal["a", "b"]),
        ({"a": 1}, Mapping[str, float]),
        ([1, 2], tuple[float, ...]),
        (True, bool),
        (object(), pytest.Item),
    ],
)
def test_what_fits_passes(given: Any, kind: Any) -> None:
    check_kind("x", given, kind)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (True, int, "x is True; it must be a whole number"),
        (True, float, "x is True; it must be a number"),
        (float("inf"), float | None, "x is inf; it must be a number or null"),
        (float("nan"), float, "x is nan; it must be a number"),
        (1.5, int, "x is 1.5; it must be a whole number"),
        ("1", int | None, "x is '1'; it must be a whole number or null"),
        (1, bool, "x is 1; it must be true or false"),
        (None, str, "x is None; it must be a string"),
        ("ab", list[str], "x is 'ab'; it must be a list, each a string"),
        ({"a": "b"}, Mapping[str, int], "x.a is 'b'; it must be a whole number"),
        (3, Mapping[str, int], "x is 3; it must be a mapping, each value a whole number"),
        (0, Annotated[int, Ge(1)], "x is 0; it must be a whole number ≥ 1"),
        (1.5, Annotated[float, Gt(0), Le(1)] | None, "it must be a number above 0 and at most 1 or null"),
        ([], Annotated[list[str], MinLen(1)], "it must be a list, each a string not empty"),
        ([1], tuple[float, float], "x is [1]; it must be a list of 2, each a number"),
        ({"vison": 1}, Mapping[Literal["vision"], int], "x has no key 'vison'. Did you mean 'vision'?"),
        ("some", Literal["all"] | Sequence[str], "x is 'some'; it must be 'all' or a list, each a string"),
        ([5], Literal["all"] | Sequence[str], "x[0] is 5; it must be a string"),
        ("floar", Literal["exact", "floor"], "x 'floar' is unknown. Did you mean 'floor'? Known: exact, floor"),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(given: Any, kind: Any, message: str) -> None:
    with pytest.raises(AuroraError) as error:
        check_kind("x", given, kind)
    assert message in str(error.value)


def test_a_list_of_a_config_becomes_a_tuple() -> None:
    assert read_fields(Recipe, "r", {"rate": 1, "betas": [0.9, 0.99]}) == Recipe(1, (0.9, 0.99))


def test_a_short_form_is_the_mapping_that_it_stands_for() -> None:
    assert read_fields(Recipe, "r", {"rate": 1, "limit": 3}).limit == Limit(3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "r lacks rate"),
        ({"rat": 1}, "r has no key 'rat'. Did you mean 'rate'?"),
        ({"rate": "fast"}, "r.rate is 'fast'; it must be a number"),
        (3, "r is 3; it must be a mapping"),
        ({"rate": 1, "limit": {"most": 0}}, "r.limit.most is 0; it must be a whole number ≥ 1"),
        ({"rate": 1, "limit": 0}, "r.limit.most is 0"),
        ({"rate": 1, "limit": {"most": 3, "least": 4}}, "r.limit.least is 4, above most"),
    ],
)
def test_a_mapping_that_is_no_such_class_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(AuroraError) as error:
        read_fields(Recipe, "r", entry)
    assert message in str(error.value)


@pytest.mark.parametrize(("slot", "name"), [(slot, name) for slot in SLOTS for name in SLOTS[slot].known()])
def test_the_options_of_every_part_are_checked(slot: str, name: str) -> None:
    assert set(SLOTS[slot].options(name)) <= set(kinds_of(SLOTS[slot].get(name)))
