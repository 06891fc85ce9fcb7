"""What a stage is trained on: which dataset folders, and how much of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from aurora.errors import AuroraError, suggest
from aurora.options import read_fields


@dataclass(frozen=True, kw_only=True)
class Part:
    """One dataset: read `repeats` times per epoch, or as the share `weight` of the mixture's `visits`."""

    repeats: int = 1
    weight: float | None = None
    samples: int | None = None  # take no more than so many, always the same ones
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Datasets that are counted together."""

    samples: int | None = None  # take no more than so many of all of them, of each the same share
    paper: int | None = None  # what the paper's table says, repeats not counted


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Datasets by folder name, and what is said of them together."""

    datasets: Mapping[str, Part]
    groups: Mapping[str, Group] = field(default_factory=dict)
    visits: int | None = None  # per epoch, what weights are shares of
    table: str | None = None  # of the paper, when the mixture is part of one
    paper: int | None = None  # the total that this table states
    note: str = ""

    def only(self, names: Iterable[str]) -> Mixture:
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
    if isinstance(given, Mixture):
        return given
    if not isinstance(given, Mapping) or not given:
        raise AuroraError(f"{where} names no dataset; it is written as {{folder: repeats}}, or is the name of a yaml "
                          "in configs/mixture or a path to one")
    whole: Mapping[str, Any] = given if isinstance(given.get("datasets"), Mapping) else {"datasets": given}
    parts = {str(name): _part(f"{where}.{name}", part) for name, part in whole["datasets"].items()}
    groups = {str(name): read_fields(Group, f"{where}.groups.{name}", entry)
              for name, entry in (whole.get("groups") or {}).items()}
    rest = {key: value for key, value in whole.items() if key not in ("datasets", "groups")}
    mixture = replace(read_fields(Mixture, where, {**rest, "datasets": {}}), datasets=parts, groups=groups)
    _check(where, mixture)
    return mixture


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


def _part(where: str, given: Any) -> Part:
    if isinstance(given, Mapping):
        part = read_fields(Part, where, given)
    elif isinstance(given, int) and not isinstance(given, bool):
        part = Part(repeats=given)
    else:
        raise AuroraError(f"{where} is {given!r}; give how often it is read per epoch (1, 2, ...), or a mapping with "
                          "some of repeats, weight, samples, group")
    if part.repeats < 1:
        raise AuroraError(f"{where} is read {part.repeats} times per epoch; give 1, 2, ...")
    if part.weight is not None and (not 0 < part.weight <= 1 or part.repeats != 1):
        raise AuroraError(f"{where}: weight {part.weight} is a share of `visits`, above 0 and at most 1, in place of "
                          "repeats")
    if part.samples is not None and part.samples < 1:
        raise AuroraError(f"{where}: samples {part.samples} must be 1 or more")
    return part


def _check(where: str, mixture: Mixture) -> None:
    if not mixture.datasets:
        raise AuroraError(f"{where} names no dataset")
    counts = {"visits": mixture.visits, **{f"groups.{name}.samples": group.samples
                                           for name, group in mixture.groups.items()}}
    for key, count in counts.items():
        if count is not None and count < 1:
            raise AuroraError(f"{where}.{key} is {count}; it must be 1 or more")
    shares = sum(part.weight or 0 for part in mixture.datasets.values())
    if shares > 1 + 1e-6:
        raise AuroraError(f"{where}: the weights sum to {shares:.6g}; they are shares of `visits`, at most 1 together")
    for name, part in mixture.datasets.items():
        if "/" in name or "\\" in name or name.startswith("."):
            raise AuroraError(f"{where}: {name!r} is no name of a folder below data.root")
        if part.weight is not None and mixture.visits is None:
            raise AuroraError(f"{where}.{name} has a weight, a share of `visits`, which are not given: write "
                              "{visits: 1000000, datasets: {...}}")
        if part.group is not None and mixture.groups and part.group not in mixture.groups:
            raise AuroraError(f"{where}.{name}: no group named {part.group!r}.{suggest(part.group, mixture.groups)}")
