"""Building shards beside plain webdataset, in small."""

from pathlib import Path

import pytest

from aurora.bench.case import Settings
from aurora.bench.data_building import cases
from aurora.bench.run import run_case


@pytest.mark.filterwarnings("ignore")  # webdataset leaves files open
def test_all_writers_write_the_same_samples(tmp_path: Path) -> None:
    settings = Settings(quick=True, folder=tmp_path)
    rows = [row for case in cases(settings) for row in run_case("data", case, settings).rows]
    assert [(row.contestant, row.note) for row in rows if row.status != "ok"] == []
    assert len(rows) == 6
