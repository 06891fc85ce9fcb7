"""Reading shards beside plain webdataset and plain decoding, in small."""

from pathlib import Path

import pytest

from tools.bench import data_reading
from tools.bench.case import Settings, difference

pytestmark = pytest.mark.process


@pytest.mark.filterwarnings("ignore")  # webdataset leaves files open
@pytest.mark.parametrize("number", [0, 1, 2], ids=["members", "frames", "rows"])
def test_all_ways_give_the_same(tmp_path: Path, number: int) -> None:
    case = data_reading.data(Settings(quick=True, folder=tmp_path))[number]
    ours, *others = (contestant.build()() for contestant in case.contestants)
    assert others and float(ours.sum()) > 0
    assert all(difference(other, ours) <= case.tolerance for other in others)
