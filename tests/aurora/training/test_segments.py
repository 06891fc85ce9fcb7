from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aurora.registry import BACKBONE
from aurora.training.segments import cut, segments, with_equal_frames
from aurora.types import IGNORE, Frames
from tools.tiny_training import KEEP, MadeRows, long_row, tiny_config, tiny_model

RECURRENT = [name for name in BACKBONE.known() if name not in ("hf", "transformer")]


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


@pytest.mark.parametrize("count", range(2, 30))
def test_a_frame_is_never_cut_from_the_timestamp_in_front_of_it(count):
    row = long_row()
    pixels, behind = row.frames[0].pixels, 3
    positions = 9 + torch.arange(4)[:, None] * (behind + KEEP) + behind + torch.arange(KEEP)
    frames = (Frames(pixels, positions, behind),)
    found = [group for piece in cut(row._replace(frames=frames), count) for group in piece.frames]
    assert sum(len(group.pixels) for group in found) == 4
    assert all(group.timestamp == behind and int(group.positions.min()) >= behind for group in found)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_piece_continues_what_the_one_before_leaves_open(count):
    pieces = cut(long_row(), count)
    for before, after in pairwise(pieces):
        assert after.continues == before.unfinished
    assert not pieces[0].continues and not pieces[-1].unfinished


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("count", [2, 5])
def test_the_losses_of_pieces_add_up_to_that_of_the_row(name, count):
    torch.manual_seed(0)
    model = tiny_model(backbone={**tiny_config("run")["backbone"], "name": name})
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


def test_a_row_is_cut_into_segments_of_about_so_many_positions():
    cpu = torch.device("cpu")
    assert segments(long_row(), None, cpu)[0].tokens is not None and len(segments(long_row(), None, cpu)) == 1
    assert [len(piece.tokens) for piece in segments(long_row(), 10, cpu)] == [9, 11, 10]


# ---- frames on every rank --------------------------------------------------------------------------------------


def made_row(model, number):
    return MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None).row(number)


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_a_blank_frame_changes_neither_loss_nor_gradient(group):
    torch.manual_seed(0)
    model = tiny_model()
    row = made_row(model, 2)
    assert row.frames == ()
    plain = model(row)
    plain.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    added = with_equal_frames(row, model)
    framed = model(added)
    framed.total.backward()
    assert len(added.frames) == 1 and framed.count == plain.count
    torch.testing.assert_close(framed.total, plain.total)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.get(name, torch.zeros_like(parameter)))


def test_ddp_on_one_process_learns_from_text_alone(group):
    model = tiny_model()
    copies = DistributedDataParallel(model)
    for _ in range(2):  # the second notices weights that the first left out
        copies(with_equal_frames(made_row(model, 2), model)).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_row_with_frames_is_left_alone(group):
    model = tiny_model()
    row = made_row(model, 0)
    assert with_equal_frames(row, model) is row
