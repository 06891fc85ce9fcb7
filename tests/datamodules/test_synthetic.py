from itertools import chain

import pytest
import torch

from aurora.errors import AuroraError
from aurora.registry import DATA
from aurora.types import IGNORE


def module(make, **options):
    config = {"name": "synthetic", "global_batch": 6, "steps": 3, "row_samples": 2, "frames": 2, "height": 48,
              "width": 64, "text_tokens": 5, **options}
    layout = config.pop("layout", make.layout())
    return DATA.build(config, tokenizer=make.Letters(), layout=layout, prompt=None, reader=None)


def test_rows_have_the_shape_that_was_asked_for(make):
    rows = list(chain.from_iterable(module(make).train_dataloader()))
    assert [row.closes_step for row in rows] == [False, False, True] * 3
    assert {(len(row.tokens), row.samples, len(row.cu_seqlens)) for row in rows} == {(2 * (1 + 2 * 4 + 5), 2, 3)}
    assert all(int((row.targets != IGNORE).sum()) == 10 for row in rows)


def test_a_run_goes_on_with_the_rows_it_would_have_had(make):
    whole, rest = list(chain.from_iterable(module(make).train_dataloader())), module(make)
    found = rest.rows(whole[2].position, steps=2, rank=0, world=1)
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(whole[3:], found, strict=True))


def test_ranks_without_a_row_are_given_placeholders(make, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [row.samples for row in chain.from_iterable(module(make).train_dataloader())] == [2, 0] * 3


def test_a_batch_that_does_not_divide_into_rows_is_refused(make):
    with pytest.raises(AuroraError, match="multiple"):
        module(make, global_batch=5)


def test_frames_stand_behind_their_timestamps(make):
    row = next(chain.from_iterable(module(make, layout=make.stamped(make.layout())).train_dataloader()))
    assert len(row.tokens) == 2 * (1 + 2 * (7 + 4) + 5) and make.timestamps(row) == ["0:00:00", "0:00:01"] * 2
