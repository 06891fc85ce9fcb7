"""What is done to every block of the vision encoder and of the backbone: recomputing its activations, compiling it.

A block's `forward` is wrapped in place, so that the names of its parameters stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from aurora.model import AuroraModel
from aurora.training.recipe import TrainerOptions

KERNELS = "aurora"  # the namespace of operators of our own
DEAR = frozenset({
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
})
"""Operators whose results are kept by `recompute_cheap`: where the arithmetic is."""


def blocks(model: AuroraModel) -> Iterator[nn.Module]:
    """The blocks of the vision encoder and of the backbone: what is sharded and recomputed as one."""
    for part in (model.vision, model.backbone):
        yield from blocks_of(part)


def blocks_of(part: Any) -> Iterator[nn.Module]:
    """The blocks of one of them."""
    yield from (module for module in part.modules() if isinstance(module, part.block_class))


def prepare_blocks(model: AuroraModel, options: TrainerOptions) -> None:
    """Compiles and recomputes as the options say."""
    if options.compile == "block":
        compile_blocks(model)
    if options.activation_checkpointing == "block":
        recompute_blocks(model)
    if options.activation_checkpointing == "selective":
        recompute_cheap(model)


def recompute_blocks(model: AuroraModel) -> None:
    """Makes every block's activations again in the backward pass instead of keeping them."""
    for block in blocks(model):
        _wrap(block, lambda forward: functools.partial(checkpoint, forward, use_reentrant=False))


def recompute_cheap(model: AuroraModel) -> None:
    """The same, but the backbone keeps what its products gave, and makes only the rest again.

    The encoder's blocks add to what a product gave in its own memory, so nothing of theirs could be kept.
    """
    contexts = functools.partial(create_selective_checkpoint_contexts, _keep_dear)
    for block in blocks_of(model.vision):
        _wrap(block, lambda forward: functools.partial(checkpoint, forward, use_reentrant=False))
    for block in blocks_of(model.backbone):
        _wrap(block, lambda forward: functools.partial(checkpoint, forward, use_reentrant=False, context_fn=contexts))


def compile_blocks(model: AuroraModel, backend: str = "inductor") -> None:
    """Compiles what stands between our kernels, for rows of any length."""
    for block in blocks(model):
        _wrap(block, functools.partial(torch.compile, dynamic=True, backend=backend))


def _wrap(block: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    block.forward = around(block.forward)


def _keep_dear(context: Any, operator: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    dear = operator in DEAR or operator.namespace == KERNELS
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
