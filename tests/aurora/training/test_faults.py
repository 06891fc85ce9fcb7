import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aurora.errors import AuroraError
from aurora.options import read_fields
from aurora.recipe import TrainerOptions
from aurora.training.callbacks.csv_logger import METRICS_FILE
from aurora.training.callbacks.watchdog import TRY_AGAIN
from aurora.training.checkpoint.layout import CHECKPOINTS, checkpoint_path, is_committed
from aurora.training.distributed.rendezvous import Rank, fitted, rank_from_env
from tools.tiny_training import curve, free_port, start, start_ranks, tiny_config, train

STEPS = 8
MODEL = Path("first", "model", "model.safetensors")


class Runs:
    """Runs of the first stage in processes of their own, and what they said."""

    def __init__(self, folder):
        self.folder, self.count, self.started = folder, 0, []
        self.log = folder / "none"

    def config(self, name="run", **trainer):
        config = {**tiny_config(self.folder / name, steps=STEPS), "stage": "first"}
        config["trainer"].update(trainer)
        return config

    def start(self, config, world=1, **environment):
        self.count += 1
        self.log = self.folder / f"log-{self.count}"
        if world == 1:
            processes = [start(config, f"{self.log}-0", **environment)]
        else:
            processes = start_ranks(config, self.log, world, **environment)
        self.started += processes
        return processes

    def finish(self, processes, seconds=60):
        for process in processes:
            process.join(seconds)
        return [process.exitcode for process in processes]

    def run(self, config, world=1, **environment):
        return self.finish(self.start(config, world, **environment))

    def said(self, rank=0):
        return Path(f"{self.log}-{rank}").read_text()

    def wait_for_step(self, config, step, processes):
        path = checkpoint_path(Path(config["run"]) / "first" / CHECKPOINTS, step)
        deadline = time.monotonic() + 60
        while not is_committed(path) and processes[0].exitcode is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert is_committed(path), self.said()


@pytest.fixture
def runs(tmp_path):
    runs = Runs(tmp_path)
    yield runs
    for process in runs.started:
        if process.exitcode is None:
            process.kill()
        process.join()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run gives that nothing happens to: by the number of its processes."""
    folders = {}
    for world, strategy in ((1, "auto"), (2, "fsdp")):
        runs = Runs(tmp_path_factory.mktemp("uninterrupted"))
        config = runs.config(strategy=strategy)
        assert runs.run(config, world) == [0] * world, runs.said()
        folders[world] = Path(config["run"])
    return folders


def assert_same(config, expected):
    assert curve(config["run"], "first") == curve(expected, "first")
    assert (Path(config["run"]) / MODEL).read_bytes() == (expected / MODEL).read_bytes()


# ---- signals


@pytest.mark.parametrize(("name", "world"), [("SIGTERM", 2), ("SIGUSR1", 1), ("SIGINT", 2)])
def test_a_signal_to_one_process_saves_and_ends_all_and_the_run_goes_on_exactly(runs, uninterrupted, name, world):
    config = runs.config(strategy="auto" if world == 1 else "fsdp")
    processes = runs.start(config, world, SECONDS_PER_ROW="0.03")
    runs.wait_for_step(config, 1, processes)
    number = getattr(signal, name)
    os.kill(processes[-1].pid, number)
    assert runs.finish(processes) == [128 + number] * world
    assert f"stopped by {name} after step" in runs.said() and "Traceback" not in runs.said()
    assert len(curve(config["run"], "first")) < STEPS
    assert runs.run(config, world) == [0] * world, runs.said()
    assert_same(config, uninterrupted[world])


def test_a_signal_in_the_last_step_ends_all_before_the_model_is_written(runs):
    config = runs.config(strategy="ddp")
    assert runs.run(config, 2, SIGTERM=str(4 * STEPS - 1)) == [128 + signal.SIGTERM] * 2
    assert f"stopped by SIGTERM after step {STEPS}" in runs.said() and not (Path(config["run"]) / MODEL).exists()
    assert runs.run(config, 2) == [0, 0], runs.said()
    assert len(curve(config["run"], "first")) == STEPS and (Path(config["run"]) / MODEL).exists()


def test_a_second_interrupt_ends_a_process_that_waits_for_a_row(runs):
    config = runs.config()
    process, = runs.start(config, HANG="9")
    runs.wait_for_step(config, 2, [process])
    for _ in range(2):
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 1 and "stopped after step 2, which is saved" in runs.said()


@pytest.fixture
def scontrol(tmp_path):
    """A SLURM of one command, which writes down how it was called and fails for job 13."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n'
                    '[ "$2" != 13 ] || { echo "Invalid job id" >&2; exit 1; }\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("name", "variables", "calls"), [
    ("SIGUSR1", {"SLURM_JOB_ID": "77"}, "requeue 77\n"),
    ("SIGUSR1", {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}, "requeue 70_7\n"),
    ("SIGUSR1", {"SLURM_JOB_ID": "13"}, "requeue 13\n"),
    ("SIGTERM", {"SLURM_JOB_ID": "77"}, None),  # which also comes to a job that its owner cancels
])
def test_a_job_of_slurm_whose_time_is_up_goes_back_into_the_queue_once(runs, scontrol, name, variables, calls):
    config = runs.config(strategy="ddp")
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    processes = runs.start(config, 2, SECONDS_PER_ROW="0.05", PATH=path, **variables)
    runs.wait_for_step(config, 1, processes)
    for process in processes:
        os.kill(process.pid, getattr(signal, name))
    assert runs.finish(processes) == [128 + getattr(signal, name)] * 2
    called = scontrol.with_name("calls")
    assert (called.read_text() if called.exists() else None) == calls
    assert ("could not be requeued (Invalid job id)" in runs.said()) == (variables["SLURM_JOB_ID"] == "13")


@pytest.mark.parametrize("world", [1, 2])
def test_a_job_whose_time_is_up_outside_of_training_goes_back_into_the_queue_once(runs, scontrol, world):
    config = runs.config(strategy="auto" if world == 1 else "ddp")
    first, = runs.start(runs.config(), HANG="9")
    runs.wait_for_step(config, 1, [first])
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    processes = runs.start(config, world, PATH=path, SLURM_JOB_ID="77")
    log = Path(f"{runs.log}-0")
    while not log.exists() or "waiting for process" not in log.read_text():  # for the folder that another run holds
        assert processes[0].exitcode is None
        time.sleep(0.005)
    for process in reversed(processes):
        os.kill(process.pid, signal.SIGUSR1)
    assert runs.finish(processes)[0] == 128 + signal.SIGUSR1
    assert scontrol.with_name("calls").read_text() == "requeue 77\n"


def test_a_lost_rank_ends_the_other_and_no_step_is_missing(runs):
    config = runs.config(strategy="ddp")
    processes = runs.start(config, 2, SECONDS_PER_ROW="0.03")
    runs.wait_for_step(config, 2, processes)
    processes[1].kill()
    assert 0 not in runs.finish(processes)
    assert runs.run(config, 2) == [0, 0], runs.said()
    assert [step for step, _ in curve(config["run"], "first")] == list(range(1, STEPS + 1))


# ---- hangs


def test_one_hung_rank_ends_all_and_leaves_the_stacks_of_all(runs):
    config = runs.config(strategy="fsdp", watchdog_seconds=2)
    assert runs.run(config, 2, HANG="9") == [TRY_AGAIN] * 2
    stacks = Path(config["run"]) / "first" / "stacks"
    assert "in __iter__" in (stacks / "rank-1.txt").read_text()  # row 9 is the second process's
    assert "in training_step" in (stacks / "rank-0.txt").read_text()
    for rank in range(2):
        assert f"{stacks} shows where every process stood" in runs.said(rank)


def test_a_process_that_holds_the_interpreter_is_ended_as_well(runs):
    config = runs.config(watchdog_seconds=2)
    assert runs.run(config, LOCK="9") == [1]
    assert "in __iter__" in (Path(config["run"]) / "first" / "stacks" / "rank-0.txt").read_text()


def test_a_run_without_a_hang_leaves_no_stacks_and_may_do_without_a_watchdog(runs, uninterrupted):
    assert not (uninterrupted[2] / "first" / "stacks").exists()
    config = runs.config(watchdog_seconds=None)
    assert runs.run(config) == [0]
    assert not (Path(config["run"]) / "first" / "stacks").exists()


# ---- numbers


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nan_on_one_rank_skips_the_step_on_all(runs, strategy):
    config = runs.config(strategy=strategy)
    assert runs.run(config, 2, POISON="9") == [0, 0], runs.said()
    losses = [loss for _, loss in curve(config["run"], "first")]
    assert [loss == "nan" for loss in losses] == [step == 2 for step in range(STEPS)]
    assert "skipped 1" in runs.said()


def test_nans_on_one_rank_end_all_when_they_do_not_end(runs):
    config = runs.config(strategy="ddp", max_bad_steps=2)
    assert 0 not in runs.run(config, 2, POISON="9,13")
    assert "2 steps in a row had no finite gradient" in runs.said(0) + runs.said(1)


def spiky(runs, action, name="run"):
    config = runs.config(name, spike={"factor": 1.1, "window": 3, "action": action}, checkpoint_every=2)
    config["stages"]["first"].update(trained=["connector", "backbone"], peak_lr=0.05)
    return config


def test_a_spike_is_left_out(runs):
    config = spiky(runs, "skip")
    assert runs.run(config, LEAP="20,21,22,23") == [0]
    losses = [float(loss) for _, loss in curve(config["run"], "first")]
    assert "skipped 1" in runs.said() and max(losses) == losses[5] and losses[6] < losses[4]


def test_a_spike_that_rolls_back_leaves_the_weights_of_the_newest_checkpoint(runs):
    config = spiky(runs, "rollback")
    processes = runs.start(config, LEAP="20,21,22,23", SECONDS_PER_ROW="0.02")
    folder = Path(config["run"]) / "first" / CHECKPOINTS
    runs.wait_for_step(config, 6, processes)
    before, after = (load_file(next(checkpoint_path(folder, step).glob("shard-*"))) for step in (4, 6))
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert runs.finish(processes) == [0]
    assert "step 6 was a spike: rolled back to the weights after step 4" in runs.said()


def test_a_run_killed_after_a_spike_goes_on_exactly(runs):
    whole, broken = spiky(runs, "rollback", "whole"), spiky(runs, "rollback", "broken")
    assert runs.run(whole, LEAP="20,21,22,23") == [0]
    processes = runs.start(broken, LEAP="20,21,22,23", SECONDS_PER_ROW="0.03")
    runs.wait_for_step(broken, 6, processes)
    processes[0].kill()
    assert runs.finish(processes) == [-9]
    assert runs.run(broken, LEAP="20,21,22,23") == [0]
    assert_same(broken, Path(whole["run"]))


@pytest.mark.parametrize(("spike", "message"), [
    ({"factor": 1.0}, "factor is 1.0; it must be a number above 1"),
    ({"factor": 2.0, "window": 1}, "window is 1"),
    ({"factor": 2.0, "action": "panic"}, "'panic' is unknown"),
])
def test_a_spike_that_makes_no_sense_is_refused(spike, message):
    with pytest.raises(AuroraError, match=message):
        read_fields(TrainerOptions, "trainer", {"spike": spike})


# ---- disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB; skipped where it may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True).returncode:
        pytest.skip("needs permission to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_is_told_and_stops_at_the_second_save_and_the_run_goes_on_exactly(
    runs, small_disk, uninterrupted
):
    config = {**runs.config(checkpoint_every=2), "run": str(small_disk / "run")}
    processes = runs.start(config, SECONDS_PER_ROW="0.05")
    runs.wait_for_step(config, 2, processes)
    filler = small_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    assert runs.finish(processes) == [2]
    assert runs.said().count("No space left") >= 2 and "2 checkpoints in a row could not be written" in runs.said()
    assert "which is not saved" in runs.said() and "which is saved" not in runs.said()
    filler.unlink()
    assert runs.run(config) == [0], runs.said()
    assert_same(config, uninterrupted[1])


def test_a_curve_that_cannot_be_written_is_told_once_and_ends_no_run(runs):
    config = runs.config()
    processes = runs.start(config, SECONDS_PER_ROW="0.03")
    runs.wait_for_step(config, 2, processes)
    path = Path(config["run"]) / "first" / METRICS_FILE
    path.unlink()
    path.mkdir()
    assert runs.finish(processes) == [0], runs.said()
    assert runs.said().count("CsvLogger could not write after step") == 1


def test_a_second_run_in_the_same_folder_is_refused(runs):
    config = runs.config(watchdog_seconds=None, rendezvous_seconds=0.5)
    first, = runs.start(config, HANG="9")
    runs.wait_for_step(config, 1, [first])
    assert runs.run(config) == [2]
    assert f"process {first.pid} on {socket.gethostname()} trains in {config['run']}/first; end it first" in runs.said()
    first.kill()
    first.join()
    assert runs.run(config) == [0]


def test_what_is_lost_with_a_broken_checkpoint_is_said(runs, uninterrupted):
    config = runs.config(checkpoint_every=3)
    process, = runs.start(config, SECONDS_PER_ROW="0.03")
    runs.wait_for_step(config, 6, [process])
    process.kill()
    process.join()
    shard = next(checkpoint_path(Path(config["run"]) / "first" / CHECKPOINTS, 6).glob("shard-*"))
    shard.write_bytes(bytes(shard.stat().st_size))
    assert runs.run(config) == [0]
    assert "going back to step-3: 3 steps are lost and taken again" in runs.said()
    assert_same(config, uninterrupted[1])


def test_no_decision_of_training_depends_on_the_clock_on_the_wall():
    sources = (Path(__file__).parents[3] / "aurora" / "training").rglob("*.py")
    assert not [path.name for path in sources if re.search(r"time\.time\(|datetime\.|st_.time", path.read_text())]


def test_what_one_process_finds_wrong_with_the_run_is_said_once_and_ends_all(runs):
    config = runs.config(strategy="ddp")
    folder = Path(config["run"]) / "first"
    (folder / CHECKPOINTS).mkdir(parents=True)
    (folder / CHECKPOINTS / "newest").write_text("step-3")
    assert runs.run(config, 2) == [2, 2]
    assert "none of the checkpoints" in runs.said() and runs.said(1) == ""


def test_a_logger_that_finds_no_place_to_write_is_said_once_and_ends_all(runs):
    config = runs.config(strategy="ddp")
    config["logger"] = {"board": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "/dev/null"}}
    assert runs.run(config, 2) == [2, 2]
    assert "logger.board: " in runs.said() and runs.said(1) == ""


def test_a_model_that_cannot_be_written_is_said_once_and_ends_all(runs):
    config = runs.config(strategy="fsdp")
    model = Path(config["run"]) / "first" / "model"
    model.parent.mkdir(parents=True)
    model.symlink_to("nowhere")
    assert runs.run(config, 2) == [2, 2]
    assert "Not a directory" in runs.said() and runs.said(1) == ""
    model.unlink()
    assert runs.run(config, 2) == [0, 0]


# ---- starting together


def test_a_port_in_use_is_one_clear_message(runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        processes = runs.start(runs.config(rendezvous_seconds=2), 2, port=port)
        assert runs.finish(processes) == [2, 2]
    assert f"127.0.0.1:{port} is in use by another program" in runs.said(0)


def test_a_first_process_that_is_not_there_is_one_clear_message(runs):
    port = free_port()
    process = start(runs.config(rendezvous_seconds=1), runs.folder / "alone", RANK="1", LOCAL_RANK="1", WORLD_SIZE="2",
                    LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert runs.finish([process]) == [2]
    said = (runs.folder / "alone").read_text()
    assert f"did not reach the first process at 127.0.0.1:{port} within 1 s" in said


def test_a_process_that_does_not_come_is_one_clear_message(runs):
    process = start(runs.config(rendezvous_seconds=1), runs.folder / "alone", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2",
                    LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    assert runs.finish([process]) == [2]
    assert "not all 2 processes came to 127.0.0.1" in (runs.folder / "alone").read_text()


def start_unequal(runs, *configs):
    port = str(free_port())
    runs.log = runs.folder / "unequal"
    world = str(len(configs))
    processes = [start(config, f"{runs.log}-{rank}", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world,
                       LOCAL_WORLD_SIZE=world, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                 for rank, config in enumerate(configs)]
    return runs.finish(processes)


def test_ranks_that_were_given_different_configs_do_not_start(runs):
    other = runs.config()
    other["stages"]["first"]["peak_lr"] = 0.5
    assert start_unequal(runs, runs.config(), other) == [2, 2]
    assert "rank 1 on" in runs.said() and "stages.first.peak_lr was 0.01, is 0.5" in runs.said()
    assert runs.said(1) == ""
    assert not (runs.folder / "run").exists()


def test_a_run_folder_that_is_not_shared_is_said(runs):
    # the same path is another folder for the second process, as on two nodes without a shared file system
    first, second = runs.folder / "first-node", runs.folder / "second-node"
    config = {**runs.config(), "run": "run"}
    port = str(free_port())
    processes = []
    for rank, folder in enumerate((first, second)):
        folder.mkdir()
        processes.append(start(config, runs.folder / f"log-{rank}", cwd=str(folder), RANK=str(rank),
                               LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                               MASTER_PORT=port))
    assert runs.finish(processes) == [2, 2]
    assert "run=run is not one folder" in (runs.folder / "log-0").read_text()
    assert not list(first.rglob(".shared*"))


def test_a_stage_that_only_one_rank_cannot_start_is_said_by_the_first(runs, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_text("")
    link = tmp_path / "node" / "weights"
    link.parent.mkdir()
    config = {**runs.config(), "base_weights": {"backbone": {"rwkv6": "weights.pth"}}}
    config["run"] = str(runs.folder / "run")
    port = str(free_port())
    processes = [start(config, runs.folder / f"log-{rank}", cwd=str(folder), RANK=str(rank), LOCAL_RANK=str(rank),
                       WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                 for rank, folder in enumerate((tmp_path, link.parent))]
    assert runs.finish(processes) == [2, 2]
    assert "weights.pth does not exist (rank 1 on" in (runs.folder / "log-0").read_text()


def test_the_last_stage_with_a_missing_predecessor_names_the_command(runs):
    assert runs.run({**runs.config(), "stage": "second"}) == [2]
    assert f"`aurora train run={runs.folder / 'run'} stage=first` trains it" in runs.said()


def test_processes_that_srun_started_meet_at_the_first_node(runs, uninterrupted):
    config = runs.config(strategy="fsdp")
    reported = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "127.0.0.[1,9]",
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_LOCALID": "0", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [start(config, runs.folder / f"log-{rank}", SLURM_PROCID=str(rank), **reported) for rank in range(2)]
    assert runs.finish(processes) == [0, 0], (runs.folder / "log-0").read_text()
    assert_same(config, uninterrupted[2])


# ---- places


SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[0-1]"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "n0",
            "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("environment", "launcher"), [(SRUN, "srun"), (TORCHRUN, "torchrun"),
                                                       (SRUN | TORCHRUN, "torchrun")])
def test_a_launcher_says_the_place_of_a_process(environment, launcher):
    place = rank_from_env(environment)
    assert place == Rank(rank=5, world=8, local=1, per_node=4, launcher=launcher) and place.nodes == 2


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {"LOCAL_RANK": "1"}])
def test_a_process_that_no_launcher_started_is_alone(environment):
    assert rank_from_env(environment) is None


@pytest.mark.parametrize(("environment", "message"), [
    ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK"),
    ({**SRUN, "SLURM_STEP_NUM_TASKS": "7"}, "same number"),
    ({"SLURM_STEP_NUM_TASKS": "8"}, r"SLURM_STEP_NUM_TASKS is set and SLURM_PROCID, .* not; srun .*`unset SLURM_STEP"),
    ({**SRUN, "SLURM_STEP_NUM_TASKS": "4(x2)"}, r"SLURM_STEP_NUM_TASKS is '4\(x2\)', not the number"),
    ({**TORCHRUN, "MASTER_PORT": "n0:80"}, r"MASTER_PORT is 'n0:80', not the number that torchrun sets"),
])
def test_half_a_place_is_an_error(environment, message):
    with pytest.raises(AuroraError, match=message):
        rank_from_env(environment)


@pytest.mark.parametrize(("port", "why"), [("taken", "is in use by another program"), ("n0:80", "cannot be: invalid")])
def test_a_port_where_processes_could_not_meet_is_one_clear_message(tmp_path, monkeypatch, port, why):
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1]) if port == "taken" else port
        monkeypatch.setenv("MASTER_PORT", port)
        config = {**tiny_config(tmp_path, steps=1), "stage": "first"}
        with pytest.raises(AuroraError, match=rf"MASTER_PORT={port} {why}.* give a free one, or unset MASTER_PORT"):
            train({**config, "trainer": {**config["trainer"], "devices": 2, "strategy": "ddp"}})


def test_another_number_of_devices_than_the_launcher_started_is_an_error():
    place = rank_from_env(TORCHRUN)
    assert fitted(TrainerOptions(), place).devices == 4
    with pytest.raises(AuroraError, match=r"trainer\.devices is 2, but torchrun started 4"):
        fitted(TrainerOptions(devices=2), place)
    assert fitted(TrainerOptions(devices=2), None).devices == 2
