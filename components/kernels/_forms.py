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

from ._grid import sequence_lengths

log = logging.getLogger(__name__)

Inputs = ParamSpec("Inputs")
Outputs = TypeVar("Outputs")


class Form(NamedTuple):
    """One way to compute an operator over packed rows."""

    compute: Callable[..., tuple[Tensor, Tensor]]
    unfit: Callable[[Tensor, Tensor], str | None] = lambda k, v: None
    """Why it cannot take these keys [..., K] and values [T, H, V] (their device, dtype, widths; something that is not
    installed here), said so that the user knows what would be right; None when it can."""
    widens: bool = True
    """Whether its inputs are widened to float32 (float64 when they are) before; otherwise it takes them as they are."""


class Operator(NamedTuple):
    """A recurrence over packed rows, and the forms that compute it: `auto` takes the first that can.

    A form's `compute` takes the inputs, the lengths of the sequences and the state [S, H, K, V].
    """

    name: str
    forms: Mapping[str, Form]
    inputs: Mapping[str, str]
    """Their names in order, keys `k` and values `v` [T, H, V] among them, with one letter per axis."""
    step: Callable[..., tuple[Tensor, Tensor]]
    """One position of S sequences by torch: the inputs and the state → what is read, and the next state."""
    apart: tuple[str, ...] = ()
    """Inputs that keep a dtype of their own; the others are taken in the smallest that holds them all."""

    def read(
        self, tensors: Sequence[Tensor], cu_seqlens: Tensor, state: Tensor | None, form: str, return_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[T, H, V] in the dtype of v, and the final state [S, H, K, V] in float32, or float64 when the inputs are.

        AuroraError when shapes, dtypes or devices do not fit, or the form cannot take them.
        """
        given = dict(zip(self.inputs, tensors, strict=True))
        dtype, lengths = given["v"].dtype, sequence_lengths(cu_seqlens, len(tensors[0]))
        alike = reduce(torch.promote_types, (x.dtype for name, x in given.items() if name not in self.apart))
        given = {name: x if name in self.apart else x.to(alike) for name, x in given.items()}
        exact = wide(alike)
        k, v = given["k"], given["v"]
        if state is None:
            state = torch.zeros(len(lengths), *v.shape[1:-1], k.shape[-1], v.shape[-1], dtype=exact, device=v.device)
        self._check(self.name, given, state, S=len(lengths))
        if form == "auto" and max(lengths) == 1:
            y, after = self.read_one([*given.values()], state.to(exact))
        else:
            chosen = choose(self.name, self.forms, form, k, v)
            row = [x.to(exact) for x in given.values()] if chosen.widens else [*given.values()]
            y, after = chosen.compute(*row, lengths, state.to(exact))
        return y.to(dtype), after if return_state else None

    def read_one(self, tensors: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """One position of S sequences in the dtype of the state: [S, H, V], next state.

        A kernel computes it in one pass over the state where one can.
        """
        given = dict(zip(self.inputs, tensors, strict=True))
        alike = {x.dtype for name, x in given.items() if name not in self.apart}
        if state.dtype is torch.float32 and len(alike) == 1:
            for name in KERNELS:
                if name in self.forms and self.forms[name].unfit(given["k"], given["v"]) is None:
                    self._check(f"{self.name}_step", given, state, S=len(state), T=len(state))
                    return self.forms[name].compute(*tensors, (1,) * len(state), state)
        return self.step(*tensors, state)

    def _check(self, name: str, given: Mapping[str, Tensor], state: Tensor, **sizes: int) -> None:
        shaped = {key: (x, self.inputs[key]) for key, x in given.items()}
        check_inputs(name, {**shaped, "state": (state, "SHKV")}, **sizes)


KERNELS = ("triton", "cpu")
"""Forms that compute a single position in one pass over the state."""


def choose(op: str, forms: Mapping[str, Form], name: str, k: Tensor, v: Tensor) -> Form:
    """The form of that name; for `auto` the first that can take keys [..., K] and values [T, H, V] like these.

    AuroraError when there is no such form, or it cannot.
    """
    if name == "auto":
        return _first_fit(op, forms, k, v)
    if name not in forms:
        raise AuroraError(f"{op} has no form {name!r}.{suggest(name, ['auto', *forms])}")
    reason = forms[name].unfit(k, v)
    if reason is not None:
        raise AuroraError(f"{op}: the form {name!r} {reason}")
    return forms[name]


def _first_fit(op: str, forms: Mapping[str, Form], k: Tensor, v: Tensor) -> Form:
    passed: dict[str, str] = {}
    for name, form in forms.items():
        reason = form.unfit(k, v)
        if reason is None:
            _tell(op, name, k.device.type, k.shape[-1], v.shape[-1], _reasons(passed))
            return form
        passed[name] = reason
    raise AuroraError(f"{op}: no form can take keys {tuple(k.shape)} {k.dtype} on {k.device}: {_reasons(passed)}")


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


def wide(dtype: torch.dtype) -> torch.dtype:
    """What recurrences are computed in: float32, or float64 when that is asked for."""
    return torch.promote_types(dtype, torch.float32)


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
