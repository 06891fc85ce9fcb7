"""Which frames are left out: the same for every part, and what counts as unchanged."""

from __future__ import annotations

import pytest
import torch

from aurora.errors import AuroraError
from aurora.registry import SKIP

GREY = torch.full((3, 48, 64), 100, dtype=torch.uint8)


def changed(rows: slice, columns: slice, by: int) -> torch.Tensor:
    frame = GREY.clone()
    frame[:, rows, columns] += by
    return frame


@pytest.mark.parametrize("name", SKIP.known())
def test_a_frame_that_is_black_where_it_was_white_is_read(name: str) -> None:
    black, white = torch.zeros_like(GREY), torch.full_like(GREY, 255)
    assert SKIP.build({"name": name}).skips(black, white) is False


@pytest.mark.parametrize("name", SKIP.known())
def test_a_frame_of_another_shape_is_read(name: str) -> None:
    assert SKIP.build({"name": name}).skips(GREY, GREY[:, :40]) is False


def test_by_default_every_frame_is_read() -> None:
    assert SKIP.build({"name": "none"}).skips(GREY, GREY) is False


def test_noise_is_no_change_but_a_small_thing_that_moves_is() -> None:
    skip = SKIP.build({"name": "unchanged"})
    noise = torch.randint(-6, 7, GREY.shape, generator=torch.Generator().manual_seed(0))
    assert skip.skips((GREY.int() + noise).to(torch.uint8), GREY)
    assert not skip.skips(changed(slice(8, 16), slice(16, 24), 40), GREY)


def test_the_threshold_is_a_share_of_the_range() -> None:
    skip = SKIP.build({"name": "unchanged", "threshold": 0.1, "cell": 8})  # 25.5 levels
    assert skip.skips(changed(slice(0, 8), slice(0, 8), 25), GREY)
    assert not skip.skips(changed(slice(0, 8), slice(0, 8), 26), GREY)


def test_what_changes_slowly_is_read_in_the_end() -> None:
    """Frames are compared with the last one that was read, not with the one before."""
    skip, last, read = SKIP.build({"name": "unchanged", "threshold": 0.05}), GREY, 0
    for step in range(1, 31):
        frame = changed(slice(None), slice(None), 2 * step)
        if not skip.skips(frame, last):
            last, read = frame, read + 1
    assert read == 4


@pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": 1.5}, {"cell": 0}, {"cells": 4}])
def test_options_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(AuroraError, match="skip 'unchanged'"):
        SKIP.build({"name": "unchanged", **options})
