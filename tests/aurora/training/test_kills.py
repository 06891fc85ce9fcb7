import importlib.util
import random
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("kill_runs", Path(__file__).parents[3] / "tools" / "kill_runs.py")
kill_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill_runs)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(kill_runs, "STEPS", 6)


@pytest.mark.process
@pytest.mark.parametrize(("kind", "kills"), [("one process", 2), ("two with whole weights", 1), ("two with shards", 1)])
def test_nobody_can_tell_from_the_outcome_that_a_run_was_killed(tmp_path, kind, kills):
    assert f"{kills} kills" in kill_runs.check(tmp_path / "runs", kind, kills, random.Random(2))


def test_a_repeated_row_is_noticed(tmp_path):
    run = tmp_path / "run"
    kill_runs._finish(run, "one process")
    log = next(tmp_path.glob("run.read-0001-*"))
    log.write_text(log.read_text() + "5 23\n")
    with pytest.raises(kill_runs.Changed, match="in step 5"):
        kill_runs._require_same(run, run)
