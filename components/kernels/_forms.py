"""The forms of an operator: several ways to compute one thing, and the choice among them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce, wraps
from itertools import islice
from typing import Any, NamedTuple, ParamSpec, TypeVar

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


def without_autocast(op: Callable[Inputs, Outputs]) -> Callable[Inputs, Outputs]:
    """Keeps autocast out of an operator on tensors, which would narrow the products inside, and torch.compile, which
    would compile anew for every row: work is laid out by the lengths of its sequences."""

    @wraps(op)
    def guarded(*inputs: Inputs.args, **options: Inputs.kwargs) -> Outputs:
        if torch.compiler.is_compiling():
            uncompiled: Callable[Inputs, Outputs] = torch.compiler.disable(guarded)  # type: ignore[no-untyped-call]
            return uncompiled(*inputs, **options)
        device = next(x.device.type for x in (*inputs, *options.values()) if isinstance(x, Tensor))
        if not torch.is_autocast_enabled(device):
            return op(*inputs, **options)
        with torch.autocast(device, enabled=False):
            return op(*inputs, **options)

    return guarded


@dataclass(frozen=True, eq=False)
class Operator:
    """A recurrence over packed rows, and the forms that compute it: `auto` takes the first that can.

    A form's `compute` takes the inputs, the lengths of the sequences and the state [S, H, K, V].
    """

    name: str
    forms: Mapping[str, Form]
    inputs: Mapping[str, str]
    """Their names in order, keys `k` and values `v` [T, H, V] among them, with one letter per axis."""
    by_torch: Callable[..., tuple[Tensor, Tensor]]
    """One position of S sequences: the inputs and the state → what is read, and the next state."""
    apart: tuple[str, ...] = ()
    """Inputs that keep a dtype of their own; the others are taken in the smallest that holds them all."""

    @without_autocast
    def __call__(
        self, *row: Any, form: str = "auto", return_state: bool = True, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """[T, H, V] in the dtype of v, and the final state [S, H, K, V] in float32, or float64 when the inputs are.

        Takes the inputs, `cu_seqlens` [S + 1] on any device, and the `state` [S, H, K, V], or none for zeros.
        AuroraError when shapes, dtypes or devices do not fit, or the form cannot take them.
        """
        names = (*self.inputs, "cu_seqlens", "state")
        given = {"state": None, **dict(zip(names, row, strict=False)), **named}
        if given.keys() != set(names) or len(row) + len(named) > len(names):
            raise TypeError(f"{self.name} takes {', '.join(names)}, form and return_state")
        cu_seqlens, state = given.pop("cu_seqlens"), given.pop("state")
        given = {name: given[name] for name in self.inputs}
        dtype, lengths = given["v"].dtype, sequence_lengths(cu_seqlens, len(next(iter(given.values()))))
        alike = reduce(torch.promote_types, (x.dtype for name, x in given.items() if name not in self.apart))
        given = {name: x if name in self.apart else x.to(alike) for name, x in given.items()}
        exact = wide(alike)
        k, v = given["k"], given["v"]
        if state is None:
            state = torch.zeros(len(lengths), *v.shape[1:-1], k.shape[-1], v.shape[-1], dtype=exact, device=v.device)
        self._check(self.name, given, state, S=len(lengths))
        if form == "auto" and max(lengths) == 1:
            y, after = self.step(*given.values(), state.to(exact))
        else:
            chosen = choose(self.name, self.forms, form, k, v)
            taken = [x.to(exact) for x in given.values()] if chosen.widens else given.values()
            y, after = chosen.compute(*taken, lengths, state.to(exact))
        return y.to(dtype), after if return_state else None

    @without_autocast
    def step(self, *row: Tensor) -> tuple[Tensor, Tensor]:
        """One position of S sequences, from the inputs and the state [S, H, K, V]: [S, H, V] in the dtype of v, and
        the next state. Computes in the dtype of the state, by a kernel in one pass over it where one can."""
        *tensors, state = row
        given = dict(zip(self.inputs, tensors, strict=True))
        alike = {x.dtype for name, x in given.items() if name not in self.apart}
        if state.dtype is torch.float32 and len(alike) == 1:
            for name in KERNELS:
                if name in self.forms and self.forms[name].unfit(given["k"], given["v"]) is None:
                    self._check(f"{self.name}_step", given, state, S=len(state), T=len(state))
                    return self.forms[name].compute(*tensors, (1,) * len(state), state)
        return self.by_torch(*tensors, state)

    def _check(self, op: str, given: Mapping[str, Tensor], state: Tensor, **sizes: int) -> None:
        """AuroraError unless every tensor is of a floating dtype, on the device of the first, and has the shape that
        its letters say; a letter stands for what `sizes` or the first tensor that has it says."""
        device = next(iter(given.values())).device
        for name, tensor in {**given, "state": state}.items():
            letters = self.inputs.get(name, "SHKV")
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


KERNELS = ("triton", "cpu")
"""Forms that compute a single position in one pass over the state."""


def choose(op: str, forms: Mapping[str, Form], name: str, k: Tensor, v: Tensor) -> Form:
    """The form of that name; for `auto` the first that can take keys [..., K] and values [T, H, V] like these.

    AuroraError when there is no such form, or it cannot.
    """
    if name not in ("auto", *forms):
        raise AuroraError(f"{op} has no form {name!r}.{suggest(name, ['auto', *forms])}")
    passed: list[str] = []
    for candidate in forms if name == "auto" else [name]:
        reason = forms[candidate].unfit(k, v)
        if reason is None:
            if name == "auto":
                _tell(op, candidate, k.device.type, k.shape[-1], v.shape[-1], "; ".join(passed))
            return forms[candidate]
        passed.append(f"{candidate!r} {reason}")
    if name != "auto":
        raise AuroraError(f"{op}: the form {passed[0]}")
    raise AuroraError(f"{op}: no form can take keys {tuple(k.shape)} {k.dtype} on {k.device}: {'; '.join(passed)}")


@cache
def _tell(op: str, name: str, device: str, keys: int, values: int, passed: str) -> None:
    """Says once what was chosen."""
    why = f" ({passed})" if passed else ""
    log.info("%s: form %r on %s, heads of %d × %d%s", op, name, device, keys, values, why)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What recurrences are computed in: float32, or float64 when that is asked for."""
    return torch.promote_types(dtype, torch.float32)


def step_by_step(step: Callable[..., tuple[Tensor, Tensor]], *row: Any) -> tuple[Tensor, Tensor]:
    """A recurrence as it is written down: step(*inputs at one position [1, ...], state [1, ...]), position by position.

    Inputs [T, ...], the lengths of the sequences, state [S, ...] → [T, ...], [S, ...].
    """
    *inputs, lengths, state = row
    outputs, states = [], []
    positions = zip(*(torch.split(x, 1) for x in inputs), strict=True)
    for sequence, length in enumerate(lengths):
        s = state[sequence, None]
        for position in islice(positions, length):
            y, s = step(*position, s)
            outputs.append(y)
        states.append(s)
    return torch.cat(outputs), torch.cat(states)
