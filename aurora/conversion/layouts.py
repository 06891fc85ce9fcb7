"""What a layout is: the names and shapes under which a family's weights are kept, said relative to our own.

A module of a slot, `_layouts_NAME.py`, says for the part NAME which layouts its weights come in, as `FAMILY`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

View = Callable[[Tensor], Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def same(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


class Piece(NamedTuple):
    """A tensor, seen in another way."""

    name: str
    view: View = same


Table = dict[str, tuple[Piece, ...]]
"""For each name the pieces that stand behind each other, along the first dimension, in its tensor."""


@dataclass(frozen=True)
class Bond:
    """The same values under our names and under theirs; one of the two may be several equal parts of the other.

    `forth` shows one of ours as it stands in theirs, `back` the other way round.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    forth: View = same
    back: View = same

    def to_theirs(self) -> Table:
        """How their tensors are made."""
        return _table(self.ours, self.theirs, self.forth)

    def to_ours(self) -> Table:
        """How our tensors are made."""
        return _table(self.theirs, self.ours, self.back)


@dataclass(frozen=True)
class Layout:
    """One way of keeping a family's weights."""

    name: str
    told: str
    marks: tuple[str, ...]  # patterns of names that only this layout has
    bonds: Callable[[int], Sequence[Bond]] | None = None  # by number of layers; None: our own names
    layer: str = r"(?!)"  # a pattern of names with the number of their layer in its group
    left_out: tuple[str, ...] = ()  # patterns of names that belong to it and have no place among ours
    copies: Mapping[str, str] = field(default_factory=dict)  # names that repeat another one and may be absent
    writes_copies: bool = False
    carried: tuple[str, ...] = ()  # patterns of names that may be there and are kept inside the layout only
    configure: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None  # (options, dtype) → config.json
    check: Callable[[Mapping[str, Any]], None] = lambda config: None  # AuroraError for a config.json of another kind
    notes: tuple[str, ...] = ()  # what its readers must know and no config says

    def fits(self, names: Iterable[str]) -> bool:
        """Whether any name is a mark of this layout."""
        return any(re.search(mark, name) for name in names for mark in self.marks)

    def layers(self, names: Iterable[str]) -> int:
        """The number of layers that names speak of."""
        return 1 + max((int(found[1]) for name in names if (found := re.match(self.layer, name))), default=-1)

    def carries(self, name: str) -> bool:
        """Whether a name is kept where source and target are both in this layout."""
        return any(re.fullmatch(pattern, name) for pattern in self.carried)

    def knows(self, name: str) -> bool:
        """Whether a name belongs to the layout although it has no place among ours."""
        return name in self.copies or any(re.fullmatch(pattern, name) for pattern in (*self.left_out, *self.carried))


@dataclass(frozen=True)
class Family:
    """A part with its layouts; the first one is what its `load_base` reads."""

    slot: str
    part: str
    layouts: tuple[Layout, ...]
    options: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    """(the shapes of our tensors, config.json) → the options of the part."""

    unpack: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    """What a model folder holds of the part, by the names of the layout that is our own."""

    def layout(self, names: Iterable[str]) -> Layout | None:
        """The layout that names are of."""
        names = list(names)
        return next((layout for layout in self.layouts if layout.fits(names)), None)


def _table(sources: tuple[str, ...], targets: tuple[str, ...], view: View) -> Table:
    if len(targets) == 1:
        return {targets[0]: tuple(Piece(source, view) for source in sources)}
    return {target: (Piece(sources[0], partial(_part, number=number, of=len(targets), view=view)),)
            for number, target in enumerate(targets)}


def _part(tensor: Tensor, *, number: int, of: int, view: View) -> Tensor:
    return view(tensor.chunk(of)[number])
