"""The bench `train`: an optimizer step of a whole model, with the share of the machine's arithmetic that it uses.

Shape letters: T packed positions, N frames, M tokens per frame.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.model import AuroraModel
from aurora.recipe import TrainerOptions
from aurora.registry import WEIGHTED_SLOTS
from aurora.training.distributed.strategies import prepare_blocks
from aurora.types import IGNORE, Frames, PackedBatch
from tools.bench import language, overhead, towers, weights
from tools.bench.case import Case, Contestant, Outcome, Settings
from tools.bench.machine import Cost
from tools.bench.timing import Work
from tools.bench.towers import TowerSize
from tools.bench.weights import Size

TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
RATIO = 0.1
SPREAD = 0.02
"""Added to every weight: an untrained RWKV starts with zeros behind which a wrong gradient would not show."""


class TrainSize(NamedTuple):
    """A model and the row that it learns from; half of the row's text is learned."""

    name: str
    tower: TowerSize
    backbone: Size
    tokenizer: str
    frames: int
    positions: int
    sequences: int

    @property
    def kept(self) -> int:
        """Tokens per frame."""
        return towers.merged_tokens(self.tower, RATIO)[-1][1]

    @property
    def learned(self) -> int:
        return (self.positions - self.frames * self.kept) // 2

    def config(self, dtype: str) -> dict[str, Any]:
        return {"vision": self.tower.config(), "merge": {"name": "tome"}, "sort": {"name": "raster"},
                "connector": {"name": "mlp"}, "backbone": self.backbone.config, "prompt": {"name": "sandwich"},
                "tokenizer": {"name": self.tokenizer}, "dtype": dtype}


FULL = TrainSize("full model", towers.FULL, weights.FULL, "rwkv_world", 32, 8192, 4)
SMALL = TrainSize("small model", TowerSize(image_size=192, width=256, layers=6, heads=4, mlp_width=1024),
                  Size(hidden_size=512, layers=6, vocab_size=257), "bytes", 8, 1024, 2)
SHORT = TrainSize("half-small model", TowerSize(image_size=96, width=128, layers=4, heads=4, mlp_width=512),
                  Size(hidden_size=256, layers=4, vocab_size=257), "bytes", 8, 1024, 2)
TINY = TrainSize("tiny model", towers.QUICK, Size(hidden_size=64, layers=2, vocab_size=257), "bytes", 2, 48, 2)


def train(settings: Settings) -> list[Case]:
    """A step of the full model on a GPU, of a small one on a CPU."""
    size = TINY if settings.quick else FULL if settings.gpu else SMALL
    short = SHORT if size is SMALL else size
    dtypes = settings.wanted(*TOLERANCE) if settings.dtypes else ["bfloat16" if settings.gpu else "float32"]
    return [
        Case(
            f"training step, {size.name}, {size.positions} positions with {size.frames} frames, {dtype}",
            [Contestant("aurora", partial(_step, settings, size, dtype, False)),
             Contestant("aurora, blocks recomputed", partial(_step, settings, size, dtype, True))],
            cost(size, dtype), TOLERANCE[dtype], partial(_right, settings, size), items=size.positions,
            unit="positions", heavy=True,
        )
        for dtype in dtypes
    ] + [_surroundings(settings, short, dtype) for dtype in dtypes]


def _surroundings(settings: Settings, size: TrainSize, dtype: str) -> Case:
    """A step so short that its overhead stands out from noise."""
    return Case(
        f"what surrounds a step, {size.name}, {size.positions} positions with {size.frames} frames, {dtype}",
        [Contestant("bare loop", partial(_step, settings, size, dtype, False)),
         Contestant("aurora train", partial(_trained, settings, size, dtype))],
        cost(size, dtype), TOLERANCE[dtype], items=size.positions, unit="positions", heavy=True,
    )


def _trained(settings: Settings, size: TrainSize, dtype: str) -> Work:
    return overhead.Trained(settings, _model(settings, size, dtype), size.config(dtype), _row(size, settings.device))


def cost(size: TrainSize, dtype: str) -> Cost:
    """Three times the arithmetic of the forward pass, whatever is computed again; weights, gradients and both moments
    read once."""
    seen = towers.cost(size.tower, size.frames, dtype, towers.merged_tokens(size.tower, RATIO))
    read = language.cost(size.backbone, dtype, size.positions)
    head = 2 * (size.learned - 1) * size.backbone.vocab_size * size.backbone.hidden_size
    return Cost(3 * (seen.flops + read.flops + head), 4 * (seen.bytes + read.bytes), dtype)


def _step(settings: Settings, size: TrainSize, dtype: str, recompute: bool) -> Work:
    model = _model(settings, size, dtype)
    if recompute:
        prepare_blocks(model, TrainerOptions(activation_checkpointing="block"))
    batch = _row(size, settings.device)
    slots = [[*getattr(model, slot).parameters()] for slot in WEIGHTED_SLOTS]
    parameters = [parameter for slot in slots for parameter in slot]
    optimizer = AdamW(parameters, lr=1e-5, fused=True)

    def work() -> list[Tensor]:
        loss = model(batch)
        mean = loss.total / loss.count
        mean.backward()
        norms = [nn.utils.get_total_norm([x.grad for x in slot if x.grad is not None]) for slot in slots]
        nn.utils.clip_grads_with_norm_(parameters, 1.0, torch.stack(norms).norm())
        optimizer.step()
        optimizer.zero_grad()
        return [mean.detach(), *norms]

    return work


def _right(settings: Settings, size: TrainSize, result: str) -> Outcome:
    """The loss and the norm of each slot's gradient in float64; of the full model in float32, which has room."""
    right: Outcome = _step(settings, size, "float32" if size is FULL else "float64", size is FULL)()
    return right


def _model(settings: Settings, size: TrainSize, dtype: str) -> AuroraModel:
    """The same weights in every dtype."""
    torch.manual_seed(0)
    with torch.device(settings.device):
        model = build_model(ModelConfig.parse(size.config("float32")))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=SPREAD)
    return model.to(getattr(torch, dtype)).train()


def _row(size: TrainSize, device: str) -> PackedBatch:
    """Sequences of equal length, each with its share of the frames at its front and text behind them."""
    generator = torch.Generator().manual_seed(0)
    length, each = size.positions // size.sequences, size.frames // size.sequences
    positions = torch.arange(each * size.kept) + length * torch.arange(size.sequences)[:, None]
    tokens = torch.randint(size.backbone.vocab_size, (size.positions,), generator=generator)
    tokens[positions.flatten()] = 0
    targets = torch.full_like(tokens, IGNORE)
    text = torch.ones(size.positions, dtype=torch.bool)
    text[positions.flatten()] = False
    answers = text.nonzero().flatten()[::2][: size.learned]
    targets[answers] = tokens[answers]
    pixels = torch.randint(256, (size.frames, 3, size.tower.image_size, size.tower.image_size), generator=generator)
    frames = Frames(pixels.to(device, torch.uint8), positions.view(size.frames, size.kept).to(device))
    bounds = torch.arange(size.sequences + 1) * length
    return PackedBatch(tokens.to(device), targets.to(device), bounds, (frames,), samples=size.sequences)
