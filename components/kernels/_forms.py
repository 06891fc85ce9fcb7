"""The forms of an operator: several ways to compute one thing, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from aurora.errors import AuroraError, suggest

log = logging.getLogger(__name__)


def fits_all(k: Tensor, v: Tensor) -> str | None:
    return None


class Form(NamedTuple):
    """One way to compute an operator over packed rows."""

    compute: Callable[..., tuple[Tensor, Tensor]]
    unfit: Callable[[Tensor, Tensor], str | None] = fits_all
    """Why it cannot take these keys [T, H, K] and values [T, H, V] (their device, dtype, widths; something that is not
    installed here), said so that the user knows what would be right; None when it can."""
    widens: bool = True
    """Whether its inputs are widened to float32 (float64 when they are) before; otherwise it takes them as they are."""


def choose(op: str, forms: Mapping[str, Form], name: str, k: Tensor, v: Tensor) -> Form:
    """The form of that name; for `auto` the first that can take keys [T, H, K] and values [T, H, V] like these.

    AuroraError when there is no such form, or it cannot.
    """
    if name == "auto":
        return forms[_first_fit(op, forms, k, v)]
    if name not in forms:
        raise AuroraError(f"{op} has no form {name!r}.{suggest(name, ['auto', *forms])}")
    reason = forms[name].unfit(k, v)
    if reason is not None:
        raise AuroraError(f"{op}: the form {name!r} {reason}")
    return forms[name]


def _first_fit(op: str, forms: Mapping[str, Form], k: Tensor, v: Tensor) -> str:
    passed: list[str] = []
    for name, form in forms.items():
        reason = form.unfit(k, v)
        if reason is None:
            _tell(op, name, str(k.device.type), k.shape[-1], v.shape[-1], "; ".join(passed))
            return name
        passed.append(f"{name!r} {reason}")
    raise AuroraError(f"{op}: no form can take keys {tuple(k.shape)} {k.dtype} on {k.device}: {'; '.join(passed)}")


@cache
def _tell(op: str, name: str, device: str, keys: int, values: int, passed: str) -> None:
    """Says once what was chosen."""
    why = f" ({passed})" if passed else ""
    log.info("%s: form %r on %s, heads of %d × %d%s", op, name, device, keys, values, why)


def on_device(kind: str) -> Callable[[Tensor, Tensor], str | None]:
    """A form that takes tensors of one kind of device only."""

    def unfit(k: Tensor, v: Tensor) -> str | None:
        return None if k.device.type == kind else f"takes tensors on {kind}, not on {k.device.type}"

    return unfit


def wide(dtype: torch.dtype) -> torch.dtype:
    """What recurrences are computed in: float32, or float64 when that is asked for."""
    return torch.promote_types(dtype, torch.float32)


def step_by_step(
    step: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], lengths: Sequence[int], state: Tensor
) -> tuple[Tensor, Tensor]:
    """A recurrence as it is written down: step(*inputs at one position [1, ...], state [1, ...]), position by position.

    inputs [T, ...], state [S, ...] → [T, ...], [S, ...].
    """
    outputs, states = [], []
    position = 0
    for sequence, length in enumerate(lengths):
        s = state[sequence, None]
        for t in range(position, position + length):
            y, s = step(*(x[t, None] for x in inputs), s)
            outputs.append(y)
        states.append(s)
        position += length
    return torch.cat(outputs), torch.cat(states)
