"""The operators of the bench `kernels`: their inputs, what they cost, and who else computes them.

Shape letters: B rows of equal length T, H heads, K key width, V value width. Rows are packed: inputs are [B T, H, K].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.kernels import ssd, wkv6, wkv7
from components.kernels._forms import choose
from tools.bench.machine import missing

MODULES = {"wkv6": wkv6, "wkv7": wkv7, "ssd": ssd}
Compute = Callable[..., Tensor]
"""(*inputs, shape) → y [B T, H, V]."""


class Shape(NamedTuple):
    """B rows of T positions with H heads."""

    rows: int
    length: int
    heads: int

    @property
    def positions(self) -> int:
        return self.rows * self.length

    def bounds(self) -> Tensor:
        """[B + 1] on the CPU: where the rows start and end."""
        return torch.arange(self.rows + 1) * self.length

    def __str__(self) -> str:
        return f"B {self.rows}, T {self.length}, H {self.heads}"


class Peer(NamedTuple):
    """Another way to compute an operator."""

    name: str
    compute: Compute
    missing: str | None = None


@dataclass(frozen=True)
class Operator:
    """An operator of `components/kernels`."""

    name: str
    keys: int
    values: int
    inputs: Callable[[Shape, torch.Generator], list[Tensor]]
    wide: Sequence[int]
    """Which inputs stay in float32 whatever the dtype: decays, as the backbones compute them."""
    flops: tuple[int, int]
    """Of the recurrence, per position, head, key and value: forward, and backward with the states made again."""
    peers: Callable[[bool], list[Peer]]  # given whether there is a GPU

    def forms(self) -> dict[str, Any]:
        """By name; the first that fits is what `auto` takes."""
        return MODULES[self.name].FORMS  # type: ignore[no-any-return]

    def chosen(self, k: Tensor, v: Tensor) -> str:
        """The form that `auto` takes for such keys and values."""
        forms = self.forms()
        taken = choose(self.name, forms, "auto", k, v)
        return next(name for name, form in forms.items() if form is taken)

    def __call__(self, *inputs: Tensor, shape: Shape, form: str) -> Tensor:
        function = getattr(MODULES[self.name], self.name)
        return function(*inputs, shape.bounds(), form=form, return_state=False)[0]  # type: ignore[no-any-return]


def _rows(x: Tensor, shape: Shape) -> Tensor:
    """[B T, ...] → [B, T, ...]."""
    return x.view(shape.rows, shape.length, *x.shape[1:])


def _loop(step: Callable[[Tensor, int], tuple[Tensor, Tensor]], state: Tensor, length: int) -> Tensor:
    """step(state, t) → (y [B, H, V], state) at every position → [B T, H, V]."""
    outputs = []
    for t in range(length):
        y, state = step(state, t)
        outputs.append(y)
    return torch.stack(outputs, 1).flatten(0, 1)


def _wkv6_inputs(shape: Shape, generator: torch.Generator) -> list[Tensor]:
    size = (shape.positions, shape.heads, 64)
    r, k, v, w = (torch.randn(size, generator=generator) for _ in range(4))
    return [r, k, v, 1.5 * w - 2, torch.randn(size[1:], generator=generator)]


def wkv6_loop(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, *, shape: Shape) -> Tensor:
    """The loop over time of the authors' inference package, in float32: a product of matrices per term and position."""
    r, k, v, w = (_rows(x.float(), shape) for x in (r, k, v, w))
    decay, bonus = torch.exp(-torch.exp(w)).unsqueeze(-1), bonus.float().unsqueeze(-1)

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        new = k[:, t].unsqueeze(-1) @ v[:, t].unsqueeze(-2)
        return (r[:, t].unsqueeze(-2) @ (bonus * new + state)).squeeze(-2), new + decay[:, t] * state

    return _loop(step, r.new_zeros(shape.rows, shape.heads, k.shape[-1], v.shape[-1]), shape.length)


def _wkv6_fla(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, *, shape: Shape) -> Tensor:
    from fla.ops.rwkv6 import chunk_rwkv6

    r, k, v, w = (_rows(x, shape) for x in (r, k, v, w))
    y: Tensor = chunk_rwkv6(r, k, v, -torch.exp(w), bonus, scale=1.0)[0]
    return y.flatten(0, 1)


def _wkv7_inputs(shape: Shape, generator: torch.Generator) -> list[Tensor]:
    size = (shape.positions, shape.heads, 64)
    r, w, k, v, kappa, gate = (torch.randn(size, generator=generator) for _ in range(6))
    kappa = F.normalize(kappa, dim=-1)
    return [r, -0.606531 * torch.sigmoid(w), 0.3 * k, v, -kappa, kappa * torch.sigmoid(gate)]


def wkv7_loop(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, *, shape: Shape) -> Tensor:
    """The loop over time of the authors' inference package, in float32, the transition written out as a matrix."""
    r, w, k, v, a, b = (_rows(x.float(), shape) for x in (r, w, k, v, a, b))
    decay = torch.exp(w)

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        move = b[:, t].unsqueeze(-1) @ a[:, t].unsqueeze(-2)
        new = k[:, t].unsqueeze(-1) @ v[:, t].unsqueeze(-2)
        state = decay[:, t].unsqueeze(-1) * state + move @ state + new
        return (r[:, t].unsqueeze(-2) @ state).squeeze(-2), state

    return _loop(step, r.new_zeros(shape.rows, shape.heads, k.shape[-1], v.shape[-1]), shape.length)


def _wkv7_fla(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, *, shape: Shape) -> Tensor:
    from fla.ops.rwkv7 import chunk_rwkv7

    # the bound on the decay lets it take its fastest way
    y: Tensor = chunk_rwkv7(*(_rows(x, shape) for x in (r, w, k, v, a, b)), scale=1.0, lower_bound=-0.606531)[0]
    return y.flatten(0, 1)


def _ssd_inputs(shape: Shape, generator: torch.Generator) -> list[Tensor]:
    q, k = (torch.randn(shape.positions, 128, generator=generator) / 128**0.25 for _ in range(2))
    v = torch.randn(shape.positions, shape.heads, 64, generator=generator)
    return [q, k, v, -F.softplus(torch.randn(shape.positions, shape.heads, generator=generator))]


def ssd_loop(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *, shape: Shape) -> Tensor:
    """The recurrence over time in float32."""
    q, k, v, a = (_rows(x.float(), shape) for x in (q, k, v, a))
    decay = torch.exp(a)[..., None, None]

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = decay[:, t] * state + k[:, t, None, :, None] * v[:, t].unsqueeze(-2)
        return (q[:, t, None, None] @ state).squeeze(-2), state

    return _loop(step, q.new_zeros(shape.rows, shape.heads, k.shape[-1], v.shape[-1]), shape.length)


def _ssd_mamba(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *, shape: Shape) -> Tensor:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    q, k, v, a = (_rows(x, shape) for x in (q, k, v, a))
    # it decays by exp(step · A) and scales values by the step: A = -1 makes the step our -a
    y: Tensor = mamba_chunk_scan_combined(
        (v / -a.unsqueeze(-1)).to(v.dtype), -a, -torch.ones(shape.heads, device=a.device), k.unsqueeze(2),
        q.unsqueeze(2), chunk_size=256)
    return y.flatten(0, 1)


def _on_gpu(module: str, gpu: bool) -> str | None:
    return missing(module) or (None if gpu else "runs on GPUs only: give --device cuda")


LOOP = "loop over time"
OPERATORS = (
    Operator("wkv6", 64, 64, _wkv6_inputs, (3,), (5, 14), lambda gpu: [
        Peer(f"{LOOP}, as in `rwkv`", wkv6_loop), Peer("fla chunk_rwkv6", _wkv6_fla, _on_gpu("fla", gpu))]),
    Operator("wkv7", 64, 64, _wkv7_inputs, (1,), (9, 22), lambda gpu: [
        Peer(f"{LOOP}, as in `rwkv`", wkv7_loop), Peer("fla chunk_rwkv7", _wkv7_fla, _on_gpu("fla", gpu))]),
    Operator("ssd", 128, 64, _ssd_inputs, (3,), (5, 10), lambda gpu: [
        Peer(LOOP, ssd_loop), Peer("mamba-ssm", _ssd_mamba, _on_gpu("mamba_ssm", gpu))]),
)
