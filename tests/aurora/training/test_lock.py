import fcntl
import os
import socket
import subprocess
import sys

import pytest

from aurora.errors import AuroraError
from aurora.training import lock
from aurora.training.checkpoint.run_folder import LOCK, locked

HOLD = """
import socket, sys
from pathlib import Path
from aurora.training.checkpoint.run_folder import locked
socket.gethostname = lambda: sys.argv[2]
with locked(Path(sys.argv[1]), patience=0, tell=print):
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
    monkeypatch.setattr(lock, "HERE_SECONDS", 0.1)
    with (pytest.raises(AuroraError, match=f"process {process.pid} on .* trains in {tmp_path}; end it first"),
          locked(tmp_path, patience=1000, tell=lambda message: None)):
        pass


def test_a_process_that_is_killed_holds_nothing(tmp_path, hold):
    process = hold()
    process.kill()
    process.wait()
    with locked(tmp_path, patience=0, tell=silent):
        assert (tmp_path / LOCK).read_text().endswith(f" {os.getpid()}")


def test_a_process_of_another_machine_is_waited_for(tmp_path, hold):
    process, told = hold("elsewhere"), []

    def tell(message):
        told.append(message)
        process.stdin.close()

    with locked(tmp_path, patience=60, tell=tell):
        assert told == [f"waiting for process {process.pid} on elsewhere, which trains in {tmp_path}"]
    process.wait()
    process.stdin = None


def test_a_process_of_another_machine_is_not_waited_for_without_end(tmp_path, hold):
    process = hold("elsewhere")
    with (pytest.raises(AuroraError, match=f"process {process.pid} on elsewhere trains in"),
          locked(tmp_path, patience=0, tell=lambda message: None)):
        pass


def test_where_the_file_system_knows_no_locks_training_goes_on(tmp_path, monkeypatch):
    def unknown(*arguments):
        raise OSError("Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    with locked(tmp_path, patience=0, tell=silent):
        pass
