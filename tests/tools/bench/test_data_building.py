"""Building shards beside plain webdataset, in small."""

from pathlib import Path

import pytest

from tools.bench.case import Case, Settings, difference
from tools.bench.data_building import data

pytestmark = pytest.mark.process


@pytest.mark.filterwarnings("ignore")  # webdataset leaves files open
@pytest.mark.parametrize(("number", "records"), [(0, 64), (1, 64), (2, 4)], ids=["copied", "made smaller", "videos"])
def test_all_writers_write_the_same_samples(tmp_path: Path, number: int, records: int) -> None:
    case: Case = data(Settings(quick=True, folder=tmp_path))[number]
    ours, *others = (contestant.build()() for contestant in case.contestants)
    assert int(ours[0]) == records and len(others) == 2
    assert all(difference(other, ours) <= case.tolerance for other in others)
