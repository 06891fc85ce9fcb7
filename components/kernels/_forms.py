"""The forms of an operator: several ways to compute one thing, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce, wraps
from itertools import islice
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from aurora.errors import AuroraError, suggest

log = logging.getLogger(__name__)

Inputs = ParamSpec("Inputs")
Outputs = TypeVar("Outputs")


class Form(NamedTuple):
    """One way to compute an operator over packed rows."""

    compute: Callable[..., tuple[Tensor, Tensor]]
    unfit: Callable[[Tensor, Tensor], str | None] = lambda k, v: None
    """Why it cannot take these keys [T, H, K] and values [T, H, V] (their device, dtype, widths; something that is not
    installed here), said so that the user knows what would be right; None when it can."""
    widens: bool = True
    """Whether its inputs are widened to float32 (float64 when they are) before; otherwise it takes them as they are."""
    slow: Callable[[Tensor, Sequence[int]], str | None] = lambda k, lengths: None
    """Why `auto` should rather take a later form for keys [T, H, K] in sequences of these lengths, said as a rule
    without the lengths themselves; None when it should not. Who names the form gets it in any case."""


def choose(
    op: str, forms: Mapping[str, Form], name: str, k: Tensor, v: Tensor, lengths: Sequence[int],
    step: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Form:
    """The form of that name; for `auto` the first that can take keys [T, H, K] and values [T, H, V] like these and is
    not slow for sequences of these lengths, or `step`, where it is given and every sequence is one position.

    AuroraError when there is no such form, or it cannot.
    """
    if name == "auto" and step is not None and max(lengths) == 1:
        return Form(lambda *given: step(*given[:-2], given[-1]), widens=False)
    if name == "auto":
        return forms[_first_fit(op, forms, k, v, lengths)]
    if name not in forms:
        raise AuroraError(f"{op} has no form {name!r}.{suggest(name, ['auto', *forms])}")
    reason = forms[name].unfit(k, v)
    if reason is not None:
        raise AuroraError(f"{op}: the form {name!r} {reason}")
    return forms[name]


def _first_fit(op: str, forms: Mapping[str, Form], k: Tensor, v: Tensor, lengths: Sequence[int]) -> str:
    passed: dict[str, str] = {}
    able = []
    for name, form in forms.items():
        reason = form.unfit(k, v)
        if reason is None:
            able.append(name)
            reason = form.slow(k, lengths)
        if reason is None:
            break
        passed[name] = reason
    if not able:
        raise AuroraError(f"{op}: no form can take keys {tuple(k.shape)} {k.dtype} on {k.device}: {_reasons(passed)}")
    chosen = name if reason is None else able[0]  # where all that fit are slow, the first
    _tell(op, chosen, k.device.type, k.shape[-1], v.shape[-1], _reasons(passed))
    return chosen


def _reasons(passed: Mapping[str, str]) -> str:
    return "; ".join(f"{name!r} {reason}" for name, reason in passed.items())


@cache
def _tell(op: str, name: str, device: str, keys: int, values: int, passed: str) -> None:
    """Says once what was chosen."""
    why = f" ({passed})" if passed else ""
    log.info("%s: form %r on %s, heads of %d × %d%s", op, name, device, keys, values, why)


def check_inputs(op: str, inputs: Mapping[str, tuple[Tensor, str]], **sizes: int) -> None:
    """AuroraError unless every tensor is of a floating dtype and has the shape that its letters say.

    `inputs` maps names to a tensor and one letter per axis, "THK"; a letter stands for what `sizes` or the first tensor
    that has it says.
    """
    device = next(iter(inputs.values()))[0].device
    for name, (tensor, letters) in inputs.items():
        if not tensor.is_floating_point():
            raise AuroraError(f"{op}: {name} is of {tensor.dtype}; it has to be float32, bfloat16 or another float")
        if tensor.device != device:
            raise AuroraError(f"{op}: {name} is on {tensor.device}, the other tensors are on {device}")
        shape = list(tensor.shape)
        if len(shape) == len(letters):
            sizes = dict(zip(letters, shape, strict=True)) | sizes
        if shape != [sizes.get(letter) for letter in letters]:
            right = ", ".join(f"{letter} = {sizes[letter]}" if letter in sizes else letter for letter in letters)
            raise AuroraError(f"{op}: {name} is {shape}; it has to be [{right}]")


def of_one_step(forms: Mapping[str, Form], state: Tensor, *row: Tensor) -> Form | None:
    """The form that computes one position of each sequence in one pass over the state, where a kernel can; `row` is
    what has to be of one dtype, keys first, values last."""
    if state.dtype is not torch.float32 or any(x.dtype != row[0].dtype for x in row):
        return None
    return next((forms[name] for name in ("triton", "cpu") if forms[name].unfit(row[0], row[-1]) is None), None)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What recurrences are computed in: float32, or float64 when that is asked for."""
    return torch.promote_types(dtype, torch.float32)


def as_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the smallest dtype that holds them all."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    return [x.to(dtype) for x in tensors]


def without_autocast(op: Callable[Inputs, Outputs]) -> Callable[Inputs, Outputs]:
    """Keeps autocast out of an operator on tensors, which would narrow the products inside, and torch.compile, which
    would compile anew for every row: work is laid out by the lengths of its sequences."""

    @wraps(op)
    def guarded(*inputs: Inputs.args, **options: Inputs.kwargs) -> Outputs:
        if torch.compiler.is_compiling():
            uncompiled: Callable[Inputs, Outputs] = torch.compiler.disable(outside)  # type: ignore[no-untyped-call]
            return uncompiled(*inputs, **options)
        return outside(*inputs, **options)

    def outside(*inputs: Inputs.args, **options: Inputs.kwargs) -> Outputs:
        device = next(x.device.type for x in (*inputs, *options.values()) if isinstance(x, Tensor))
        if not torch.is_autocast_enabled(device):
            return op(*inputs, **options)
        with torch.autocast(device, enabled=False):
            return op(*inputs, **options)

    return guarded


def step_by_step(
    step: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], lengths: Sequence[int], state: Tensor
) -> tuple[Tensor, Tensor]:
    """A recurrence as it is written down: step(*inputs at one position [1, ...], state [1, ...]), position by position.

    inputs [T, ...], state [S, ...] → [T, ...], [S, ...].
    """
    outputs, states = [], []
    positions = zip(*(torch.split(x, 1) for x in inputs), strict=True)
    for sequence, length in enumerate(lengths):
        s = state[sequence, None]
        for position in islice(positions, length):
            y, s = step(*position, s)
            outputs.append(y)
        states.append(s)
    return torch.cat(outputs), torch.cat(states)
