"""The bench `kernels`: the operators under the backbones in every form that fits, and other ways to compute them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from tools.bench.case import Case, Contestant, Outcome, Settings
from tools.bench.machine import DTYPES, Cost
from tools.bench.operators import LOOP, OPERATORS, Compute, Operator, Peer, Shape
from tools.bench.timing import Work

SHAPES = (Shape(1, 2048, 32),)
GPU_SHAPES = (Shape(8, 4096, 32), Shape(1, 16384, 32), Shape(1, 65536, 32))
QUICK_SHAPES = (Shape(2, 20, 2),)
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
EXACT = "chunk", "reference"
"""The form that gives, in float64, what is right: the first that there is. The tests hold the one to the other."""
BY_STEPS = "reference"
"""A form that walks through time as the peers' loop does. Only its forward pass is timed, and on a CPU only."""


def kernels(settings: Settings) -> list[Case]:
    """Forward, and forward with backward, of every operator."""
    shapes = QUICK_SHAPES if settings.quick else GPU_SHAPES if settings.gpu else SHAPES
    dtypes = settings.wanted("bfloat16", "float32") if settings.dtypes else ["bfloat16" if settings.gpu else "float32"]
    return [
        _case(operator, shape, dtype, backward, settings)
        for operator in OPERATORS for shape in shapes for dtype in dtypes for backward in (False, True)
    ]


def _case(operator: Operator, shape: Shape, dtype: str, backward: bool, settings: Settings) -> Case:
    return Case(
        name=f"{operator.name} {'forward + backward' if backward else 'forward'}, {shape}, {dtype}",
        contestants=_contestants(operator, shape, dtype, backward, settings),
        cost=_cost(operator, shape, dtype, backward),
        tolerance=TOLERANCE[dtype],
        oracle=partial(_right, operator, shape, dtype, backward, settings.device),
        items=shape.positions,
    )


def _contestants(operator: Operator, shape: Shape, dtype: str, backward: bool, settings: Settings) -> list[Contestant]:
    k = torch.empty(1, shape.heads, operator.keys, dtype=DTYPES[dtype], device=settings.device)
    v = torch.empty(1, shape.heads, operator.values, dtype=DTYPES[dtype], device=settings.device)
    best = operator.chosen(k, v)
    # a GPU's loop over time takes minutes for what its kernels do in milliseconds
    forms = [best, *(name for name in operator.forms() if name not in (best, "fla"))]
    if (backward or settings.gpu) and best != BY_STEPS:
        forms.remove(BY_STEPS)
    ours = [Peer(f"aurora {name}", partial(operator, form=name), operator.forms()[name].unfit(k, v)) for name in forms]
    peers = [peer for peer in operator.peers(settings.gpu) if not (settings.gpu and peer.name.startswith(LOOP))]
    build = partial(_build, operator, shape, dtype, backward, settings.device)
    return [Contestant(way.name, partial(build, way.compute), way.missing) for way in (*ours, *peers)]


def _build(operator: Operator, shape: Shape, dtype: str, backward: bool, device: str, compute: Compute) -> Work:
    inputs = _inputs(operator, shape, dtype, device)
    if not backward:
        return torch.no_grad()(partial(compute, *inputs, shape=shape))
    gradient = _gradient(inputs, operator, shape)

    def work() -> Sequence[Tensor]:
        y = compute(*inputs, shape=shape)
        return torch.autograd.grad(y, inputs, gradient.to(y.dtype))

    return work


@lru_cache(maxsize=1)
def _inputs(operator: Operator, shape: Shape, dtype: str, device: str) -> list[Tensor]:
    """The same for every contestant."""
    made = operator.inputs(shape, torch.Generator().manual_seed(0))
    return [x.to(device, torch.float32 if place in operator.wide else DTYPES[dtype]).requires_grad_()
            for place, x in enumerate(made)]


def _gradient(inputs: Sequence[Tensor], operator: Operator, shape: Shape) -> Tensor:
    drawn = torch.randn(shape.positions, shape.heads, operator.values, generator=torch.Generator().manual_seed(1))
    return drawn.to(inputs[0].device, inputs[0].dtype)


def _right(operator: Operator, shape: Shape, dtype: str, backward: bool, device: str, result: str) -> Outcome:
    """What comes out in float64 from inputs of the given dtype."""
    given = _inputs(operator, shape, dtype, device)
    inputs = [x.detach().double().requires_grad_() for x in given]
    exact = next(form for form in EXACT if form in operator.forms())
    with torch.set_grad_enabled(backward):
        y = operator(*inputs, shape=shape, form=exact)
    if not backward:
        return y
    return torch.autograd.grad(y, inputs, _gradient(given, operator, shape).double())


def _cost(operator: Operator, shape: Shape, dtype: str, backward: bool) -> Cost:
    """Arithmetic of the recurrence; every input read and every output written once, and again for the gradients."""
    forward, back = operator.flops
    per_position = shape.heads * operator.keys * operator.values
    flops = shape.positions * per_position * (forward + (back if backward else 0))
    size = DTYPES[dtype].itemsize
    made = operator.inputs(Shape(1, 1, shape.heads), torch.Generator())
    read = sum(x.numel() * (4 if place in operator.wide else size) for place, x in enumerate(made))
    written = shape.heads * operator.values * size
    return Cost(flops, shape.positions * ((read + written) * (2 if backward else 1) + (read if backward else 0)),
                dtype)
