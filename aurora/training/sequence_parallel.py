"""One row read by several ranks together: each takes a slice, and the memory is handed from rank to rank.

It goes layer by layer: a rank reads its slice with layer l as soon as the rank before it has done so, and in the
backward pass the gradient of what was handed on comes back the same way. So L layers on R ranks take the time of
L + R - 1 layers of a slice. Works with any backbone whose blocks take (..., row, state) and give (x, ..., state).
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aurora.errors import AuroraError
from aurora.interfaces import Backbone
from aurora.training.distributed.strategies import blocks_of
from aurora.training.segments import cut
from aurora.types import PackedBatch, State


class SequenceParallelGroup:
    """This rank among the R that read a row together, and what is on its way between them."""

    def __init__(self, together: int) -> None:
        """Collective over all processes."""
        rank = dist.get_rank()
        # of their own, so that they wait for nothing but each other
        groups = [dist.new_group([*range(first, first + together)])
                  for first in range(0, dist.get_world_size(), together)]
        self.together, self.place, self.rank = together, rank % together, rank
        self.group = groups[rank // together]
        self.piece: PackedBatch | None = None
        self._sent: list[tuple[dist.Work | None, Tensor]] = []

    def share(self, batch: PackedBatch) -> PackedBatch:
        """This rank's slice of a row that all of them were given; each of them closes the step that the row closes."""
        self.piece = cut(batch, self.together)[self.place]._replace(closes_step=batch.closes_step)
        return self.piece

    def send(self, tensors: Sequence[Tensor], step: int) -> None:
        """Sends to the next rank (step 1) or to the one before (-1), without waiting."""
        packed = _packed(tensors)
        self._sent.append((dist.isend(packed, self.rank + step, group=self.group), packed))

    def receive(self, like: Sequence[Tensor], step: int) -> list[Tensor]:
        """What the next rank (step 1) or the one before (-1) has sent, in shapes and dtypes that are known here."""
        packed = torch.empty_like(_packed(like))
        dist.recv(packed, self.rank + step, group=self.group)
        parts = torch.split(packed, [tensor.numel() for tensor in like])
        return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)]

    def finish(self) -> None:
        """Until all that was sent has arrived."""
        for work, _ in self._sent:
            if work is not None:
                work.wait()
        self._sent.clear()


def read_together(backbone: Backbone, peers: SequenceParallelGroup) -> None:
    """Lets every block go on from the state that the rank before hands it, and hand on its own.

    AuroraError for a backbone whose blocks do not show their states.
    """
    for block in blocks_of(backbone):
        if [*inspect.signature(type(block).forward).parameters][-2:] != ["row", "state"]:
            raise AuroraError(f"trainer.sequence_parallel: the blocks of {type(backbone).__name__} do not take and "
                              "give their state, so it cannot go from rank to rank; those of rwkv6, rwkv7, gla, "
                              "gated_deltanet and mamba2 do")
        block.forward = functools.partial(_forward, peers, block.forward)


def _forward(peers: SequenceParallelGroup, forward: Callable[..., Any], x: Tensor, *others: Any, row: Any, state: State
             ) -> tuple[Any, ...]:
    """Takes the place of a block's `forward`."""
    piece = peers.piece
    assert piece is not None
    if not x.requires_grad:
        # gradients go from rank to rank whether or not something learns before this slice
        x = x.detach().requires_grad_()
    if piece.continues:
        receive: Callable[..., tuple[Tensor, ...]] = _Receive.apply
        first = receive(peers, x, *(tensor[:1] for tensor in state.values()))
        # what is replaced stays in the graph: no rank may leave out a tuned initial state that the others learn
        state = {name: torch.cat([new + 0 * old[:1], old[1:]])
                 for (name, old), new in zip(state.items(), first, strict=True)}
    x, *given, after = forward(x, *others, row=row, state=state)
    if piece.unfinished:
        hand_on: Callable[..., Tensor] = _HandOn.apply
        x = hand_on(peers, x, *(tensor[piece.open_sequence, None] for tensor in after.values()))
    return x, *given, after


class _Receive(torch.autograd.Function):
    """The state that the rank before hands on; its gradient is sent back."""

    @staticmethod
    def forward(ctx: Any, peers: SequenceParallelGroup, x: Tensor, *like: Tensor) -> tuple[Tensor, ...]:
        """`x` lets the outputs require gradients."""
        ctx.peers = peers
        return tuple(peers.receive(like, -1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.peers.send(gradients, -1)
        return None, None, *(None for _ in gradients)


class _HandOn(torch.autograd.Function):
    """Sends a state to the next rank; x passes through, so that the backward pass meets the state's gradient here."""

    @staticmethod
    def forward(ctx: Any, peers: SequenceParallelGroup, x: Tensor, *state: Tensor) -> Tensor:
        ctx.peers = peers
        ctx.like = [torch.empty_like(tensor, device="meta") for tensor in state]
        peers.send(state, 1)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        like = [torch.empty_like(tensor, device=gradient.device) for tensor in ctx.like]
        return None, gradient, *ctx.peers.receive(like, 1)


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor that holds them all, wide enough for each."""
    wide = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return torch.cat([tensor.detach().flatten().to(wide) for tensor in tensors])
