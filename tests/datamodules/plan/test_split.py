"""Samples longer than a row: which rows they are split over, and that nothing but gradients ends between them."""

import json
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.types import IGNORE
from datamodules.plan.epoch import deal
from datamodules.plan.packing import Budget, SamplePart, part_counts
from datamodules.shards.format import TEXT, VIDEO, ShardSample
from tools.tiny_shards import write_shards

CONFIG = {
    "vision": {"name": "siglip", "image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2,
               "mlp_width": 32},
    "merge": {"name": "tome"}, "sort": {"name": "size"}, "connector": {"name": "mlp"},
    "backbone": {"name": "rwkv6", "hidden_size": 16, "layers": 2, "head_size": 8},
    "tokenizer": {"name": "bytes"}, "prompt": {"name": "sandwich"}, "dtype": "float32",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(ModelConfig.parse(CONFIG))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if "decay" in name:
            torch.nn.init.constant_(parameter, -7.0 if name.endswith("decay") else 0.0)  # it forgets slowly
    return model


@pytest.fixture
def long(make, tmp_path, model):
    """A module over long and short samples: by default rows of 120 positions and 7 frames, and each video 25 frames."""
    text = {"conversations": [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": "word " * 60 + "end."}]}
    samples = [ShardSample("video", {"conversations": make.talk(1, "<video>\n"), "video": "mp4"},
                           {"mp4": make.video(25)}),
               ShardSample("text", text), *make.mixed(6, ("image", "text"))]
    write_shards(samples, tmp_path / "long")

    def build(only=slice(None), **options):
        write_shards(samples[only], tmp_path / "long")
        options = {"row_tokens": 120, "row_frames": 7, "fps": 10.0, "global_batch": 8, "too_long": "split",
                   "layout": model.visual_layout(0.5), "mix_kinds": True, **options}
        return make.module(tmp_path, {"long": 1}, **options)

    return build


def losses(model, rows):
    """The loss of every row, memory handed on."""
    memory = None
    for row in rows:
        loss = model(row, memory)
        memory = loss.memory
        yield loss


@pytest.mark.parametrize("which", [0, 1], ids=["video", "text"])
def test_a_sample_over_several_rows_has_the_loss_that_it_has_in_one(long, model, which):
    whole, = chain.from_iterable(long(slice(which, which + 1), row_tokens=2000, row_frames=99).train_dataloader())
    parts = list(chain.from_iterable(long(slice(which, which + 1)).train_dataloader()))
    assert len(parts) == (4 if which == 0 else 3)
    wanted, found = model(whole), list(losses(model, parts))
    assert sum(int(loss.count) for loss in found) == int(wanted.count) > 10
    torch.testing.assert_close(sum(loss.total for loss in found), wanted.total, rtol=1e-5, atol=0)
    with torch.no_grad():
        forgetful = sum(model(part._replace(continues=False)).total for part in parts)
        assert abs(forgetful - wanted.total) > 1e-3 * wanted.total


@pytest.mark.parametrize("which", [0, 1], ids=["video", "text"])
def test_the_rows_joined_are_the_row(long, which):
    whole, = chain.from_iterable(long(slice(which, which + 1), row_tokens=2000, row_frames=99).train_dataloader())
    parts = list(chain.from_iterable(long(slice(which, which + 1)).train_dataloader()))
    stop = int(whole.cu_seqlens[1])
    for name in ("tokens", "targets"):
        joined = torch.cat([getattr(part, name)[:part.cu_seqlens[1]] for part in parts])
        assert torch.equal(joined, getattr(whole, name)[:stop])
    assert [(part.continues, part.unfinished) for part in parts] == [
        (number > 0, number < len(parts) - 1) for number in range(len(parts))]
    assert [part.samples for part in parts] == [0] * (len(parts) - 1) + [1]
    assert all(len(part.tokens) <= 120 for part in parts)
    if which == 0:
        assert torch.equal(torch.cat([part.frames[0].pixels for part in parts]), whole.frames[0].pixels)
        assert [len(part.frames[0].pixels) for part in parts] == [7, 6, 6, 6]


def test_gradients_end_where_a_row_ends(long, model):
    first, second, *_ = chain.from_iterable(long(slice(0, 1)).train_dataloader())
    memory = model(first).memory
    assert not any(tensor.requires_grad for tensor in memory.values())
    assert model(second._replace(unfinished=False), memory).memory is None


def test_a_tuned_initial_state_has_a_gradient_in_every_row(long):
    # or a rank that reads such a row would leave the others waiting
    model = build_model(ModelConfig.parse(CONFIG))
    model.backbone.tune_state("here")
    first, second, *_ = chain.from_iterable(long(slice(0, 1)).train_dataloader())
    model(second, model(first).memory).total.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.initial_state.parameters())


def test_the_parts_of_a_video_are_read_as_ranges(long, monkeypatch):
    module, asked = long(slice(0, 1)), []
    read = module._reader.read
    monkeypatch.setattr(module._reader, "read", lambda source, how: asked.append((how.start, how.stop)) or
                        read(source, how))
    list(chain.from_iterable(module.train_dataloader()))
    assert asked == [(0.0, 0.7), (0.7, 1.3), (1.3, 1.9), (1.9, None)]


@pytest.mark.parametrize("sampling", [{"frames": 25}, {"fps": 20.0, "max_frames": 25}], ids=str)
def test_a_video_whose_frames_are_spread_is_split_as_well(long, sampling):
    options = {"fps": None, **sampling}
    whole, = chain.from_iterable(long(slice(0, 1), row_tokens=2000, row_frames=99, **options).train_dataloader())
    parts = list(chain.from_iterable(long(slice(0, 1), **options).train_dataloader()))
    assert torch.equal(torch.cat([part.frames[0].pixels for part in parts]), whole.frames[0].pixels)


def test_rows_of_samples_that_fit_stay_as_they_are(long, model):
    rows, others = (list(chain.from_iterable(long(slice(2, None), too_long=how).train_dataloader()))
                    for how in ("split", "shrink"))
    gradients = []
    for row in (rows[0], others[0]):
        model.zero_grad()
        model(row).total.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()
                                    if parameter.grad is not None]))
    assert len(rows) == len(others) and torch.equal(*gradients) and gradients[0].abs().sum() > 0


@pytest.mark.parametrize("world", [2, 3])
def test_the_rows_of_a_sample_follow_each_other_on_one_rank(long, monkeypatch, world):
    def ranks(world):
        rows = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            rows.append(list(chain.from_iterable(long().train_dataloader())))
        return rows

    found = ranks(world)
    assert len({tuple((row.closes_step, row.position) for row in rows) for rows in found}) == 1
    for rows in found:
        assert not rows[0].continues and not rows[-1].unfinished
        assert all(one.unfinished == other.continues for one, other in pairwise(rows))
    assert sum(row.samples for rows in found for row in rows) == 8
    begun = [row.tokens[:20].tolist() for row in ranks(1)[0] if not row.continues]
    dealt = [rows[turn] for turn in range(len(found[0])) for rows in found if not rows[turn].continues]
    assert [row.tokens[:20].tolist() for row in dealt if (row.targets != IGNORE).any() or row.unfinished] == begun


def test_ranks_take_turns_and_a_long_one_is_waited_for():
    assert deal([1] * 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert deal([3, 1, 1, 1, 2], 2) == [[0, 4], [1, 2, 3]]


def test_a_long_sample_that_cannot_be_read_leaves_its_rows_empty(make, long, tmp_path):
    module = long(max_bad_rate=1.0, quarantine=str(tmp_path / "q"))
    whole = list(chain.from_iterable(module.train_dataloader()))
    module._reader.read = lambda source, sampling: iter(())
    rows = list(chain.from_iterable(module.train_dataloader()))
    for name in ("closes_step", "position", "continues", "unfinished"):
        assert [getattr(row, name) for row in rows] == [getattr(row, name) for row in whole]
    frames = [[[len(group.pixels) for group in row.frames] for row in found] for found in (rows, whole)]
    assert frames[0] == frames[1] and all(len(row.tokens) <= 120 for row in rows)
    assert sum(len(row.tokens) for row in rows) == sum(len(row.tokens) for row in whole)
    assert sum(row.samples for row in rows) == 7
    assert {json.loads(line)["key"] for line in (tmp_path / "q").read_text().splitlines()} == {"video"}


def test_long_samples_are_refused_where_asked(long):
    with pytest.raises(AuroraError, match=r"2 of 8 samples are longer than a row .*too_long=shrink, split or drop"):
        long(too_long="refuse").setup()


def test_every_row_has_room_for_the_whole_text_of_a_video():
    def count(tokens, text, frames, kind):
        return part_counts(*(np.array([value]) for value in (tokens, text, frames, kind)), Budget(100, 8, 4)).item()

    assert count(100, 20, 8, VIDEO) == 1
    assert count(110, 20, 9, VIDEO) == 2  # 8 frames of 10 beside the text
    assert count(170, 20, 15, VIDEO) == 2 and count(190, 20, 17, VIDEO) == 3
    assert count(195, 95, 10, VIDEO) == 0  # no frame beside the text
    assert [count(tokens, tokens, 0, TEXT) for tokens in (96, 97, 192, 193)] == [1, 2, 2, 3]
    assert [list(SamplePart(number, 3).of(7)) for number in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("sampling", [{"fps": 10.0}, {"fps": None, "frames": 25}], ids=str)
def test_rows_are_never_cut_between_a_timestamp_and_its_frame(make, long, model, sampling):
    options = {"timestamps": True, "max_bad_rate": 0.0, **sampling}
    whole, = chain.from_iterable(long(slice(0, 1), row_tokens=2000, row_frames=99, **options).train_dataloader())
    parts = list(chain.from_iterable(long(slice(0, 1), row_tokens=100, **options).train_dataloader()))
    assert len(parts) > 4 and all(len(part.tokens) <= 100 for part in parts)
    joined = torch.cat([part.tokens[:part.cu_seqlens[1]] for part in parts])
    assert torch.equal(joined, whole.tokens[:whole.cu_seqlens[1]])
    stamps = make.timestamps(whole)
    assert [stamp for part in parts for stamp in make.timestamps(part)] == stamps
    assert stamps[:10] == ["0:00:00"] * 10 and stamps[-1] == "0:00:02"
    total = sum(loss.total for loss in losses(model, parts))
    torch.testing.assert_close(total, model(whole).total, rtol=1e-5, atol=0)
