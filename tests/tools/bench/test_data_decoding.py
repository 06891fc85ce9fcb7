"""Decoding beside other readers, in small."""

from pathlib import Path

import pytest

from tools.bench.case import Settings, difference
from tools.bench.data_decoding import data

NAMES = ["one thread", "two threads", "few frames", "pictures"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_all_readers_give_the_same_frames(tmp_path: Path, number: int) -> None:
    made = data(Settings(quick=True, folder=tmp_path))
    assert len(made) == len(NAMES)
    case = made[number]
    ours, *others = (one.build()() for one in case.contestants if one.missing is None)
    assert len(ours) in (4, 8) and others
    assert all(difference(other, ours) <= case.tolerance for other in others)
