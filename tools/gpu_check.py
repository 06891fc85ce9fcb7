"""Errors of every form on a GPU against the recurrence in float64, values and all gradients: python tools/gpu_check.py

Prints one line per operator, form, dtype and row: the largest error of each result over the largest of what it should
be (or over one, where that is smaller). Fails when a form of ours is further off than flash-linear-attention's where
that is installed, or than a few roundings of its dtype.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.kernels import wkv6, wkv7
from components.kernels._forms import Form
from components.kernels._triton import interpreted

LENGTHS = {"1": (1,), "15": (15,), "16": (16,), "17": (17,), "4097": (4097,), "64 packed": tuple(range(1, 129, 2))}
HEAD_SIZES = (32, 64, 128)
BOUNDS = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
FORMS = ("triton", "fla")
DECAYS = {"near one": (-9.3, -7.0), "mixed": (-9.3, 3.9)}  # log(-log(decay)): from e^-1e-4 to e^-50
HEADS = 2


def wkv6_inputs(lengths: tuple[int, ...], width: int, decay: str, draw: Callable[..., Tensor]) -> list[Tensor]:
    """r, k, v, w, bonus, state."""
    low, high = DECAYS[decay]
    r, k, v, w = (draw(sum(lengths), HEADS, width) for _ in range(4))
    w = (low + (high - low) * torch.special.ndtr(w)).float()
    return [r, k, v, w, draw(HEADS, width), draw(len(lengths), HEADS, width, width)]


def wkv7_inputs(lengths: tuple[int, ...], width: int, decay: str, draw: Callable[..., Tensor]) -> list[Tensor]:
    """r, w, k, v, a, b, state; as trained, or one key again and again."""
    r, w, k, v, a, gate = (draw(sum(lengths), HEADS, width) for _ in range(6))
    if decay == "near one":
        a, w = a[:1].expand_as(a), w - 8
    a = normalize(a, dim=-1)
    w = (-0.606531 * w.sigmoid()).float()
    return [r, w, k / width**0.5, v, -a, a * gate.sigmoid(), draw(len(lengths), HEADS, width, width)]


class Operator(NamedTuple):
    compute: Callable[..., tuple[Tensor, Tensor]]
    forms: Mapping[str, Form]
    inputs: Callable[..., list[Tensor]]
    names: tuple[str, ...]  # of the results
    wide: tuple[int, int]  # places of the inputs that stay in float32


OPERATORS = {
    "wkv6": Operator(wkv6.wkv6, wkv6.FORMS, wkv6_inputs, ("y", "s", "r", "k", "v", "w", "u", "s0"), (3, 5)),
    "wkv7": Operator(wkv7.wkv7, wkv7.FORMS, wkv7_inputs, ("y", "s", "r", "w", "k", "v", "a", "b", "s0"), (1, 6)),
}


def run(operator: Operator, inputs: list[Tensor], bounds: Tensor, form: str) -> list[Tensor]:
    """Output, final state, and the gradients of all inputs through both."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    results = operator.compute(*leaves[:-1], bounds, leaves[-1], form=form)
    generator = torch.Generator(bounds.device).manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, device=x.device).bfloat16() for x in results]
    loss = sum((x.double() * weight.double()).sum() for x, weight in zip(results, weights, strict=True))
    return [*(x.detach() for x in results), *torch.autograd.grad(loss, leaves)]


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    pairs = zip(found, wanted, strict=True)
    return [float((x.double() - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs]


def check(name: str, width: int, decay: str, title: str, device: torch.device) -> int:
    """Prints the errors of every form and dtype on one row; how many of ours are too large."""
    operator, lengths = OPERATORS[name], LENGTHS[title]
    generator = torch.Generator(device).manual_seed(sum(lengths) + width)

    def draw(*shape: int) -> Tensor:
        # representable in every dtype
        return torch.randn(shape, generator=generator, device=device).bfloat16().half().float()

    drawn = operator.inputs(lengths, width, decay, draw)
    drawn = [x if place in operator.wide else x.bfloat16().half().float() for place, x in enumerate(drawn)]
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0)
    wanted = run(operator, [x.double() for x in drawn], bounds, "reference")
    wrong = 0
    for dtype, bound in BOUNDS.items():
        inputs = [x if place in operator.wide else x.to(dtype) for place, x in enumerate(drawn)]
        worst: dict[str, float] = {}
        for form in FORMS:
            reason = operator.forms[form].unfit(inputs[2], inputs[3])
            if reason is not None:
                print(f"{name} {width:4} {form} {reason}")
            else:
                found = errors(run(operator, inputs, bounds, form), wanted)
                worst[form] = max(found)
                listed = "  ".join(f"{n} {e:.0e}" for n, e in zip(operator.names, found, strict=True))
                print(f"{name} {width:4} {decay:9} {title:10} {str(dtype)[6:]:9} {form:7} {listed}", flush=True)
        ours = worst.get("triton", 0.0)
        behind = ours > 1.2 * worst.get("fla", float("inf")) + 1e-6
        if behind or ours > bound:
            wrong += 1
            print(f"  ^ ours is {ours:.1e} off, {'more than fla' if behind else f'more than {bound:.0e}'}")
    return wrong


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not interpreted():
        print("no GPU is at hand: nothing was checked (TRITON_INTERPRET=1 checks the kernels on a CPU, slowly)")
        return 1
    rows = product(OPERATORS, HEAD_SIZES, DECAYS, LENGTHS)
    wrong = sum(check(name, width, decay, title, device) for name, width, decay, title in rows)
    print(f"{wrong} rows are further off than they should be")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
