"""Rows as they are learned from: cut into TBPTT segments or slices, with as many frames on every rank."""

from itertools import pairwise

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.training.distributed.collectives import max_over_ranks
from aurora.types import IGNORE, Frames, PackedBatch


def segments(row: PackedBatch, most: int | None, device: torch.device) -> list[PackedBatch]:
    """The row in segments of about `most` positions for truncated backpropagation, as many as the longest row of all
    ranks needs; None: the row. Collective."""
    return [row] if most is None else cut(row, max_over_ranks(-(-len(row.tokens) // most), device))


def cut(batch: PackedBatch, count: int) -> list[PackedBatch]:
    """The row in `count` pieces of about the same length. A frame is never cut, nor its timestamp from it: a border
    inside moves to the nearer end. Where there is less to cut than pieces, the last ones are blank.

    Only the last piece closes the step, and samples count in the first. AuroraError for a row that goes on in another.
    """
    if batch.continues or batch.unfinished:
        raise AuroraError("data.too_long=split lays a sample over several rows, which trainer.backprop_tokens and "
                          "trainer.sequence_parallel cannot cut again; make data.row_tokens as small instead")
    pieces = [_piece(batch, start, stop) for start, stop in pairwise(_borders(batch, count))]
    pieces += [_blank(batch)] * (count - len(pieces))
    pieces[0] = pieces[0]._replace(samples=batch.samples)
    pieces[-1] = pieces[-1]._replace(closes_step=batch.closes_step)
    return pieces


def _borders(batch: PackedBatch, count: int) -> list[int]:
    """Where pieces start, and the end of the row: at most `count` + 1 different numbers, ascending."""
    length = len(batch.tokens)
    spans = [(first - group.timestamp, last + 1) for group in batch.frames
             for first, last in zip(group.positions.amin(1).tolist(), group.positions.amax(1).tolist(), strict=True)]
    found = {0, length}
    for border in (length * number // count for number in range(1, count)):
        around = next((span for span in spans if span[0] < border < span[1]), (border,))
        found.add(min(around, key=lambda end: abs(end - border)))
    return sorted(found)


def _piece(batch: PackedBatch, start: int, stop: int) -> PackedBatch:
    bounds = batch.cu_seqlens.tolist()
    inside = [bound - start for bound in bounds if start < bound < stop]
    return batch._replace(
        tokens=batch.tokens[start:stop],
        targets=batch.targets[start:stop],
        cu_seqlens=batch.cu_seqlens.new_tensor([0, *inside, stop - start]),
        frames=tuple(group._replace(pixels=group.pixels[here], positions=group.positions[here] - start)
                     for group in batch.frames
                     if (here := (group.positions[:, 0] >= start) & (group.positions[:, 0] < stop)).any()),
        samples=0,
        closes_step=False,
        continues=start not in bounds,
        unfinished=stop not in bounds,
        open_sequence=len(inside),
    )


def _blank(batch: PackedBatch) -> PackedBatch:
    """One position without a target."""
    return batch._replace(
        tokens=batch.tokens.new_zeros(1),
        targets=batch.targets.new_full((1,), IGNORE),
        cu_seqlens=batch.cu_seqlens.new_tensor([0, 1]),
        frames=(),
        samples=0,
        closes_step=False,
    )


def with_equal_frames(row: PackedBatch, model: AuroraModel) -> PackedBatch:
    """The row with blank frames added, so that every rank calls the vision encoder equally often. Collective.

    A rank that skips the encoder would leave the others waiting in its collectives. Blank frames are a sequence of
    their own without targets: the gradients that they add are zero. DDP wants a gradient of every weight, also on one
    rank alone.
    """
    if not dist.is_initialized():
        return row
    wanted = max(1, len(row.frames))
    if model.vision.prepare.resize == "keep_aspect":
        wanted = max_over_ranks(wanted, row.tokens.device)
    for _ in range(wanted - len(row.frames)):
        row = _with_blank_frame(row, model)
    return row


def _with_blank_frame(row: PackedBatch, model: AuroraModel) -> PackedBatch:
    prepare, device = model.vision.prepare, row.tokens.device
    height, width = prepare.shape(prepare.size, prepare.size)
    keep = model.merge.keep(prepare.patches(height, width), model.vision.depth, 1.0)
    start = row.tokens.shape[0]
    positions = torch.arange(start, start + keep, device=device).unsqueeze(0)
    pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device)
    return row._replace(
        tokens=pad(row.tokens, (0, keep)),
        targets=pad(row.targets, (0, keep), value=IGNORE),
        cu_seqlens=pad(row.cu_seqlens, (0, 1), value=start + keep),
        frames=(*row.frames, Frames(pixels, positions)),
    )
