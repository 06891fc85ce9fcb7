import re
import time

import pytest
import torch.distributed as dist

from aurora.errors import TRY_AGAIN
from aurora.training.checkpoint.layout import CHECKPOINTS, checkpoint_path, is_committed
from aurora.training.checkpoint.run_folder import locked
from aurora.training.distributed.collectives import is_peer_failure
from tools.tiny_training import free_port, start, start_ranks, tiny_config

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] "


@pytest.fixture
def ranks(tmp_path):
    """Starts the first stage in several processes and ends what is left of them."""
    started = []

    def start(config, world, **environment):
        started[:] = start_ranks(config, tmp_path / "said", world, **environment)
        return started

    yield start
    for process in started:
        if process.exitcode is None:
            process.kill()
        process.join()


def first_stage(tmp_path, strategy, **trainer):
    config = {**tiny_config(tmp_path / "run", steps=200), "stage": "first"}
    config["trainer"].update(strategy=strategy, **trainer)
    return config


def end(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def wait_until(there, process):
    deadline = time.monotonic() + 60
    while not there():
        assert process.exitcode is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 4)])
def test_whoever_loses_a_process_says_so_in_one_line_and_keeps_the_traceback(tmp_path, ranks, strategy, world):
    processes = ranks(first_stage(tmp_path, strategy), world, SECONDS_PER_ROW="0.02")
    folder = tmp_path / "run" / "first"
    wait_until(lambda: is_committed(checkpoint_path(folder / CHECKPOINTS, 2)), processes[0])
    processes[1].kill()
    assert end(processes) == [-9 if rank == 1 else TRY_AGAIN for rank in range(world)]
    for rank in {*range(world)} - {1}:
        said, kept = (tmp_path / f"said-{rank}").read_text(), folder / "stacks" / f"rank-{rank}.txt"
        assert "Traceback" not in said and said.count("aurora: error") == 1
        assert re.search(rf"rank {rank} on \S+ lost another process after step \d+, .*by peer.*{kept} has the", said)
        assert "_fit" in kept.read_text() and "by peer" in kept.read_text()


def test_the_next_attempt_does_not_mind_what_the_one_before_has_left_in_the_store_of_torchrun(tmp_path, ranks):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    config = {**first_stage(tmp_path, "ddp"), "data": {"name": "made_rows", "steps": 4}}
    reported = {"port": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True", "SECONDS_PER_ROW": "0.02"}
    processes = ranks(config, 2, TORCHELASTIC_RESTART_COUNT="0", **reported)
    folder = tmp_path / "run" / "first"
    wait_until(lambda: is_committed(checkpoint_path(folder / CHECKPOINTS, 1)), processes[0])
    processes[1].kill()
    assert end(processes) == [TRY_AGAIN, -9]
    assert end(ranks(config, 2, TORCHELASTIC_RESTART_COUNT="1", **reported)) == [0, 0]
    assert "resuming after step" in (tmp_path / "said-0").read_text()


@pytest.mark.process
def test_a_meeting_that_the_first_process_gives_up_is_told_in_one_line(tmp_path):
    place = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    config = first_stage(tmp_path, "ddp", rendezvous_seconds=10)
    processes = [start(config, tmp_path / f"said-{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **place)
                 for rank in (0, 2)]
    assert end(processes) == [2, TRY_AGAIN]
    said = (tmp_path / "said-2").read_text()
    # before it stand warnings of torch's own, which the command line silences before it imports torch
    assert re.match(r"aurora: error: rank 2 on \S+ lost another process outside of training", said.splitlines()[-1])
    assert "Traceback" not in said


def test_a_process_lost_before_training_is_told_in_one_line(tmp_path, ranks):
    with locked(tmp_path / "run" / "first", patience=0, report=print):
        processes = ranks(first_stage(tmp_path, "ddp"), 2)
        said = tmp_path / "said-0"
        wait_until(lambda: said.exists() and "waiting for process" in said.read_text(), processes[0])
        processes[0].kill()
        assert end(processes) == [-9, TRY_AGAIN]
    said = (tmp_path / "said-1").read_text()
    assert "rank 1 on" in said and "lost another process outside of training" in said and said.count("\n") == 1
    assert "on_all_ranks" in (tmp_path / "run" / "stacks" / "rank-1.txt").read_text()


def test_a_defect_of_one_rank_is_printed_whole_and_the_other_says_that_it_lost_a_process(tmp_path, ranks):
    assert end(ranks(first_stage(tmp_path, "fsdp"), 2, BREAK="9")) == [TRY_AGAIN, 1]
    assert "Traceback" not in (tmp_path / "said-0").read_text()
    said = (tmp_path / "said-1").read_text()
    assert "in __iter__" in said and "RuntimeError: the disk is gone" in said


@pytest.mark.parametrize("error", [
    RuntimeError(f"{GLOO}Read error [10.0.0.1]:47280: Connection reset by peer. This is typically caused by"),
    RuntimeError(f"{GLOO}Connection closed by peer [10.0.0.1]:5261. Check the logs of the remote"),
    RuntimeError("[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation"),
    RuntimeError(f"the last checkpoint could not be written: {GLOO}Connection closed by peer [10.0.0.1]:5261"),
    dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network"),
    dist.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?"),
    dist.DistStoreError("wait timeout after 300000ms, keys: /worker/1"),
])
def test_what_libraries_say_of_a_connection_that_is_gone_is_a_lost_process(error):
    assert is_peer_failure(error)


@pytest.mark.parametrize("error", [
    RuntimeError("[/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8192 vs 4"),
    dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:77, invalid usage: Duplicate GPU detected"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("the store of objects: Connection reset by peer"),
    ConnectionResetError("Connection reset by peer"),
])
def test_other_errors_are_not(error):
    assert not is_peer_failure(error)
