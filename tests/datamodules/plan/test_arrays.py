import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from datamodules.plan.arrays import load_arrays, shared_arrays

HALF_MADE = """
import sys, time
from pathlib import Path
import numpy as np
from datamodules.plan.arrays import shared_arrays

def fill(allocate):
    allocate("numbers", np.dtype("i8"), 4)[:] = 7
    print("half", flush=True)
    time.sleep(60)

shared_arrays([Path(sys.argv[1])], "id", fill)
"""


def counting(made, pause=0.0):
    """A filler that notes every call."""
    def fill(allocate):
        made.append(1)
        allocate("numbers", np.dtype("i8"), 3)[:] = [1, 2, 3]
        allocate("nothing", np.dtype("i8"), 0)
        time.sleep(pause)
        return {"said": [1, "two"]}
    return fill


def test_arrays_are_made_once_and_mapped_by_whoever_comes_next(tmp_path):
    made = []
    for _ in range(2):
        found = shared_arrays([tmp_path], "id", counting(made))
        assert found.arrays["numbers"].tolist() == [1, 2, 3] and len(found.arrays["nothing"]) == 0
        assert found.facts == {"said": [1, "two"]} and isinstance(found.arrays["numbers"], np.memmap)
    assert len(made) == 1
    assert load_arrays(found.folder).facts == found.facts


def test_another_identity_has_other_arrays(tmp_path):
    made = []
    folders = {shared_arrays([tmp_path], name, counting(made)).folder for name in ("one", "two")}
    assert len(made) == len(folders) == 2


def test_those_who_ask_at_the_same_time_wait_for_the_first(tmp_path):
    made, found = [], []
    threads = [threading.Thread(target=lambda: found.append(shared_arrays([tmp_path], "id", counting(made, 0.2))))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 4


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HALF_MADE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "id").exists()
    assert shared_arrays([tmp_path], "id", counting([])).arrays["numbers"].tolist() == [1, 2, 3]


@pytest.fixture
def refusing(tmp_path):
    """A folder that nobody can make: a file stands in its way, which stops root as well."""
    tmp_path.joinpath("shards").write_text("")
    return tmp_path / "shards" / "below"


def test_the_next_folder_is_used_where_one_cannot_be_written(tmp_path, refusing):
    assert shared_arrays([refusing, tmp_path / "run"], "id", counting([])).folder == tmp_path / "run" / "id"


def test_without_any_folder_the_arrays_are_the_processs_own(refusing):
    found = shared_arrays([refusing], "id", counting([]))
    assert found.folder is None and found.arrays["numbers"].tolist() == [1, 2, 3]


def test_an_error_while_arrays_are_made_is_not_taken_for_a_folder_that_cannot_be_written(tmp_path):
    def fill(allocate):
        raise PermissionError("a shard")
    with pytest.raises(PermissionError, match="a shard"):
        shared_arrays([tmp_path, tmp_path / "other"], "id", fill)
