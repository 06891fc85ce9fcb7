"""What a stage is trained on: which dataset folders, and how much of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

from annotated_types import Gt, Le

from aurora.errors import AuroraError, suggest
from aurora.options import FieldError, PositiveInt, read_fields


@dataclass(frozen=True, kw_only=True)
class Part:
    """One dataset: read `repeats` times per epoch, or as the share `weight` of the mixture's `visits`."""

    repeats: PositiveInt = 1
    weight: Annotated[float, Gt(0), Le(1)] | None = None
    samples: PositiveInt | None = None  # take no more than so many, always the same ones
    group: str | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and self.repeats != 1:
            raise FieldError("weight", f"{self.weight} is a share of `visits`, in place of repeats {self.repeats}")

    @staticmethod
    def expand(given: Any) -> Any:
        """A number alone is `repeats`."""
        if isinstance(given, Mapping):
            return given
        if not isinstance(given, int) or isinstance(given, bool):
            raise FieldError("", f"is {given!r}; give how often it is read per epoch (1, 2, ...), or a mapping with "
                             "some of repeats, weight, samples, group")
        return {"repeats": given}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Datasets that are counted together."""

    samples: PositiveInt | None = None  # take no more than so many of all of them, of each the same share
    paper: int | None = None  # what the paper's table says, repeats not counted


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Datasets by folder name, and what is said of them together."""

    datasets: Mapping[str, Part]
    groups: Mapping[str, Group] = field(default_factory=dict)
    visits: PositiveInt | None = None  # per epoch, what weights are shares of
    table: str | None = None  # of the paper, when the mixture is part of one
    paper: int | None = None  # the total that this table states
    note: str = ""

    def __post_init__(self) -> None:
        shares = sum(part.weight or 0 for part in self.datasets.values())
        if shares > 1 + 1e-6:
            raise FieldError("", f"has weights that sum to {shares:.6g}; they are shares of `visits`, at most 1 "
                             "together")
        for name, part in self.datasets.items():
            if "/" in name or "\\" in name or name.startswith("."):
                raise FieldError("", f"names {name!r}, which is not the name of a folder below data.root")
            if part.weight is not None and self.visits is None:
                raise FieldError(name, "has a weight, a share of `visits`, which are not given: write "
                                 "{visits: 1000000, datasets: {...}}")
            if part.group is not None and self.groups and part.group not in self.groups:
                raise FieldError(name + ":", f"no group named {part.group!r}.{suggest(part.group, self.groups)}")

    @staticmethod
    def expand(given: Any) -> Any:
        """`{folder: repeats}` and `{folder: {repeats, weight, samples, group}}` are `datasets` alone."""
        if not isinstance(given, Mapping) or not given or given.get("datasets") == {}:
            raise FieldError("", "names no dataset; it is written as {folder: repeats}, or is the name of a yaml in "
                             "configs/mixture or a path to one")
        whole = given if isinstance(given.get("datasets"), Mapping) else {"datasets": given}
        return {**whole, "groups": whole.get("groups") or {}}

    def only(self, names: Iterable[str]) -> "Mixture":
        """The mixture without the other datasets."""
        kept = set(names)
        return replace(self, datasets={name: part for name, part in self.datasets.items() if name in kept})

    def plain(self) -> dict[str, Any]:
        """What decides which samples are read how often, as JSON."""
        parts = {name: [part.repeats, part.weight, part.samples, part.group] for name, part in self.datasets.items()}
        return {"datasets": parts, "visits": self.visits,
                "groups": {name: group.samples for name, group in self.groups.items()}}


class Take(NamedTuple):
    """What is read of a dataset in an epoch."""

    samples: int  # different ones
    visits: int


def read_mixture(where: str, given: Any) -> Mixture:
    """The mixture that a config describes: `{folder: repeats}`, `{folder: {repeats, weight, samples, group}}`, or
    `{datasets: {...}, groups, visits, note}`. AuroraError names the key that makes no sense."""
    return given if isinstance(given, Mixture) else read_fields(Mixture, where, given)


def take(mixture: Mixture, sizes: Mapping[str, int]) -> dict[str, Take]:
    """What is read of each dataset when it holds so many samples. AuroraError when that is nothing of any."""
    limited = {name: min(sizes[name], part.samples if part.samples is not None else sizes[name])
               for name, part in mixture.datasets.items()}
    for group, limit in mixture.groups.items():
        if limit.samples is not None:
            members = {name: limited[name] for name, part in mixture.datasets.items() if part.group == group}
            limited.update(_shared(members, limit.samples))
    takes = {}
    for name, part in mixture.datasets.items():
        if part.weight is None:
            takes[name] = Take(limited[name], limited[name] * part.repeats)
        else:
            visits = round(part.weight * (mixture.visits or 0)) if limited[name] else 0
            takes[name] = Take(min(limited[name], visits), visits)
    if any(sizes.values()) and not any(one.visits for one in takes.values()):
        raise AuroraError(f"the mixture reads no sample of {', '.join(takes)}: its weights and `visits` round to none")
    return takes


def _shared(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """Sizes with the same share of each that sum to `limit`, if they are more: every sample is as likely to stay."""
    total = sum(sizes.values())
    if total <= limit:
        return dict(sizes)
    bounds = {name: limit * size // total for name, size in sizes.items()}
    missing = limit - sum(bounds.values())
    by_remainder = sorted(sizes, key=lambda name: (-(limit * sizes[name] % total), name))
    return {name: bound + (name in by_remainder[:missing]) for name, bound in bounds.items()}
