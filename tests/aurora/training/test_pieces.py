from itertools import pairwise

import pytest
import torch
from aurora.testing.training import KEEP, tiny_config

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.registry import BACKBONE
from aurora.training.step import cut
from aurora.types import IGNORE, Frames, PackedBatch

RECURRENT = [name for name in BACKBONE.known() if name not in ("hf", "transformer")]


def long_row():
    """Two sequences, 7 and 23 positions long; the second holds frames of KEEP tokens from position 9 on."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 200, (30,), generator=generator)
    targets = torch.where(torch.arange(30) % 3 == 0, IGNORE, tokens % 50)
    positions = 9 + torch.arange(4 * KEEP).view(4, KEEP)
    tokens[positions.flatten()] = 0
    pixels = torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return PackedBatch(tokens, targets, torch.tensor([0, 7, 30]), (Frames(pixels, positions),), 2)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_pieces_hold_every_position_and_every_frame_once(count):
    row = long_row()
    pieces = cut(row, count)
    assert len(pieces) == count
    assert torch.cat([piece.tokens for piece in pieces])[: len(row.tokens)].tolist() == row.tokens.tolist()
    assert sum(int((piece.targets != IGNORE).sum()) for piece in pieces) == int((row.targets != IGNORE).sum())
    pixels = torch.cat([group.pixels for piece in pieces for group in piece.frames])
    torch.testing.assert_close(pixels, row.frames[0].pixels)
    for piece in pieces:
        for group in piece.frames:
            assert piece.tokens[group.positions].sum() == 0
    assert [piece.closes_step for piece in pieces] == [False] * (count - 1) + [True]
    assert sum(piece.samples for piece in pieces) == 2


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_piece_continues_what_the_one_before_leaves_open(count):
    pieces = cut(long_row(), count)
    for before, after in pairwise(pieces):
        assert after.continues == before.goes_on
    assert not pieces[0].continues and not pieces[-1].goes_on


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("count", [2, 5])
def test_the_losses_of_pieces_add_up_to_that_of_the_row(name, count):
    torch.manual_seed(0)
    config = tiny_config("run")
    config["backbone"] = {**config["backbone"], "name": name}
    model = build_model(ModelConfig.parse(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    row = long_row()
    total, memory = torch.zeros(()), None
    with torch.no_grad():
        for piece in cut(row, count):
            loss = model(piece, memory)
            total, memory = total + loss.total, loss.memory
        torch.testing.assert_close(total, model(row).total, rtol=1e-5, atol=1e-5)
