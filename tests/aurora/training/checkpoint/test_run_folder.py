import os
import socket
import subprocess
import sys

import pytest
from filelock import FileLock

from aurora.errors import AuroraError
from aurora.training.checkpoint import run_folder
from aurora.training.checkpoint.run_folder import HOLDER, locked

HOLD = """
import socket, sys
from pathlib import Path
from aurora.training.checkpoint.run_folder import locked
socket.gethostname = lambda: sys.argv[2]
with locked(Path(sys.argv[1]), patience=0, report=print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the folder, on this machine or on what it takes for another."""
    started = []

    def start(host=None):
        command = [sys.executable, "-c", HOLD, tmp_path, host or socket.gethostname()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.communicate()


def silent(message):
    raise AssertionError(message)


def test_a_folder_that_another_process_holds_is_refused_with_its_number(tmp_path, hold, monkeypatch):
    process = hold()
    monkeypatch.setattr(run_folder, "LOCAL_SECONDS", 0.1)
    with (pytest.raises(AuroraError, match=f"process {process.pid} on .* trains in {tmp_path}; end it first"),
          locked(tmp_path, patience=1000, report=lambda message: None)):
        pass


def test_a_process_that_is_killed_holds_nothing(tmp_path, hold):
    process = hold()
    process.kill()
    process.wait()
    with locked(tmp_path, patience=0, report=silent):
        assert (tmp_path / HOLDER).read_text().endswith(f" {os.getpid()}")


def test_a_process_of_another_machine_is_waited_for(tmp_path, hold):
    process, reported = hold("elsewhere"), []

    def report(message):
        reported.append(message)
        process.stdin.close()

    with locked(tmp_path, patience=60, report=report):
        assert reported == [f"waiting for process {process.pid} on elsewhere, which trains in {tmp_path}"]
    process.wait()
    process.stdin = None


def test_a_process_of_another_machine_is_not_waited_for_without_end(tmp_path, hold):
    process = hold("elsewhere")
    with (pytest.raises(AuroraError, match=f"process {process.pid} on elsewhere trains in"),
          locked(tmp_path, patience=0, report=lambda message: None)):
        pass


@pytest.mark.parametrize("error", [OSError("Function not implemented"), NotImplementedError("no flock")], ids=repr)
def test_where_the_file_system_has_no_locks_training_goes_on(error, tmp_path, monkeypatch):
    def unknown(*arguments, **options):
        raise error

    monkeypatch.setattr(FileLock, "acquire", unknown)
    with locked(tmp_path, patience=0, report=silent):
        pass
