"""What a recipe says about adapters, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurora.assemble import WEIGHTED_SLOTS
from aurora.errors import AuroraError, suggest
from aurora.options import check_kind, read_fields

KINDS = ("lora", "state")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank changes of linear layers (arXiv 2106.09685): W + alpha / rank · B A."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] | str | None = None  # ends of module names, or one regex of whole names; null: the blocks'
    lr_scale: float = 1.0  # of peak_lr, in place of the slot's


@dataclass(frozen=True, kw_only=True)
class TunedState:
    """A state that every sequence starts from, learned in place of zeros."""

    states: Sequence[str] | None = None  # names of `init_state`; null: the largest, which is the recurrence's memory
    lr_scale: float = 1.0  # of peak_lr, in place of the slot's


@dataclass(frozen=True)
class SlotAdapters:
    """The adapters of one slot."""

    lora: Lora | None = None
    state: TunedState | None = None


Adapters = Mapping[str, SlotAdapters]


def read_adapters(where: str, entry: Mapping[str, Any], trained: Sequence[str]) -> dict[str, SlotAdapters]:
    """The adapters `{slot: {lora: {...}, state: {...}}}` of a stage that trains the slots in `trained` whole.

    AuroraError names the key that makes no sense.
    """
    adapters = {}
    for slot, kinds in entry.items():
        here = f"{where}.{slot}"
        if slot not in WEIGHTED_SLOTS:
            raise AuroraError(f"{where}: {slot!r} is no slot with weights.{suggest(slot, list(WEIGHTED_SLOTS))}")
        check_kind(here, kinds, Mapping[str, Any] | None)
        chosen = {kind: options for kind, options in (kinds or {}).items() if options is not None}
        for kind in chosen:
            if kind not in KINDS:
                raise AuroraError(f"{here}: no adapter named {kind!r}.{suggest(kind, KINDS)}")
        if chosen:
            adapters[slot] = _read_slot(here, slot, chosen, whole=slot in trained)
    return adapters


def _read_slot(where: str, slot: str, chosen: Mapping[str, Any], *, whole: bool) -> SlotAdapters:
    lora = read_fields(Lora, f"{where}.lora", chosen["lora"]) if "lora" in chosen else None
    state = read_fields(TunedState, f"{where}.state", chosen["state"]) if "state" in chosen else None
    if lora is not None:
        _check_lora(f"{where}.lora", lora)
        if whole:
            raise AuroraError(f"{where}.lora: the stage trains {slot} whole; take {slot} out of `trained`, or its "
                              "LoRA out of `adapters`")
    if state is not None:
        if slot != "backbone":
            raise AuroraError(f"{where}.state: only a backbone has a state to tune, not {slot}")
        _require(state.lr_scale > 0, f"{where}.state.lr_scale", state.lr_scale, "above 0")
        _require(state.states is None or len(state.states) > 0, f"{where}.state.states", state.states,
                 "null or names of states")
    return SlotAdapters(lora, state)


def _check_lora(where: str, lora: Lora) -> None:
    _require(lora.rank >= 1, f"{where}.rank", lora.rank, "a whole number ≥ 1")
    _require(lora.alpha > 0, f"{where}.alpha", lora.alpha, "above 0")
    _require(0 <= lora.dropout < 1, f"{where}.dropout", lora.dropout, "in [0, 1)")
    _require(lora.lr_scale > 0, f"{where}.lr_scale", lora.lr_scale, "above 0")
    _require(lora.targets is None or len(lora.targets) > 0, f"{where}.targets", lora.targets,
             "null, ends of module names, or a regex")


def _require(right: bool, key: str, value: Any, wanted: str) -> None:
    if not right:
        raise AuroraError(f"{key} is {value!r}; it must be {wanted}")
