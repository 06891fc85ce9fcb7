import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.errors import TRY_AGAIN
from aurora.training.checkpoint.layout import CHECKPOINTS, checkpoint_path, is_committed
from tools.tiny_training import curve

TOOL = Path(__file__).parents[3] / "tools" / "nodes.sh"
TINY = (
    "data=synthetic", "data.steps=80", "data.frames=1", "data.height=32", "data.width=32", "data.text_tokens=8",
    "stage=pretrain", "stages.pretrain.global_batch=4", "vision.image_size=32", "vision.patch_size=8",
    "vision.width=32", "vision.layers=2", "vision.heads=2", "vision.mlp_width=32", "backbone.hidden_size=32",
    "backbone.layers=1", "backbone.head_size=16", "tokenizer=bytes", "logger=csv", "trainer.threads=1",
    "trainer.checkpoint_every=2", "trainer.progress=none",
)

LONG = pytest.mark.skipif("AURORA_LONG" not in os.environ, reason="takes a minute: AURORA_LONG=1 runs it")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The curve of one process that nothing happens to."""
    run = tmp_path_factory.mktemp("alone")
    assert main(["train", *TINY, f"run={run}"]) == 0
    return curve(run, "pretrain")


class Nodes:
    """Three network namespaces, in which commands run."""

    def __init__(self):
        self.environment = {**os.environ, "AURORA_NODES": f"t{os.getpid() % 10_000}", "OMP_NUM_THREADS": "1"}
        self.started = []

    def tool(self, *words):
        return subprocess.run([TOOL, *words], env=self.environment, capture_output=True, text=True)

    def train(self, node, nodes, *overrides):
        command = [TOOL, "on", str(node), sys.executable, "-m", "aurora", "train", "--nodes", nodes,
                   "--first-node", "10.77.0.1", *TINY, *overrides]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, cwd=TOOL.parents[1])
        self.started.append(process)
        return process

    def lose(self, node):
        """All at once, as when the power fails."""
        name = f"{self.environment['AURORA_NODES']}-{node}"
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
        assert pids
        subprocess.run(["kill", "-9", *pids], check=False)


@pytest.fixture
def nodes():
    nodes = Nodes()
    if nodes.tool("up", "3").returncode:
        nodes.tool("down")
        pytest.skip("needs permission to make network namespaces")
    yield nodes
    nodes.tool("down")
    for process in nodes.started:
        process.communicate()


def wait_for(path, process):
    while not is_committed(path) and process.poll() is None:
        time.sleep(0.005)


def assert_goes_on(process, run, alone):
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "resuming after step" in said, said
    here = curve(run, "pretrain")
    assert [step for step, _ in here] == [step for step, _ in alone]
    assert [float(loss) for _, loss in here] == pytest.approx([float(loss) for _, loss in alone], rel=1e-5)


@pytest.mark.parametrize(("strategy", "relaunched"), [
    ("fsdp", True), *(pytest.param(*shown, marks=LONG) for shown in (("ddp", True), ("fsdp", False), ("ddp", False)))])
def test_two_nodes_lose_one_and_the_curve_is_that_of_an_undisturbed_run(nodes, alone, tmp_path, strategy, relaunched):
    shown = ("2" if relaunched else "1:2", f"trainer.strategy={strategy}", f"run={tmp_path}",
            "trainer.rendezvous_seconds=60")
    processes = [nodes.train(node, *shown) for node in (0, 1)]
    wait_for(checkpoint_path(tmp_path / "pretrain" / CHECKPOINTS, 4), processes[0])
    nodes.lose(1)
    assert len(curve(tmp_path, "pretrain")) < len(alone)
    if relaunched:
        nodes.train(1, *shown)
    assert_goes_on(processes[0], tmp_path, alone)


@LONG
def test_three_nodes_lose_one_go_on_as_two_and_take_it_back(nodes, tmp_path):
    # four rows per step, which three processes cannot share evenly
    steps, run = ("data.steps=400",), tmp_path / "run"
    assert main(["train", *TINY, *steps, f"run={tmp_path / 'alone'}"]) == 0
    shown = ("2:3", *steps, "trainer.strategy=fsdp", f"run={run}", "trainer.rendezvous_seconds=60")
    processes = [nodes.train(node, *shown) for node in range(3)]
    wait_for(checkpoint_path(run / "pretrain" / CHECKPOINTS, 4), processes[0])
    nodes.lose(2)
    lost_at = len(curve(run, "pretrain"))
    while len(curve(run, "pretrain")) < lost_at + 20 and processes[0].poll() is None:
        time.sleep(0.05)
    back = nodes.train(2, *shown)
    assert_goes_on(processes[0], run, curve(tmp_path / "alone", "pretrain"))
    assert back.wait(60) == 0


@LONG
def test_a_lost_first_node_ends_the_others_and_all_start_again(nodes, alone, tmp_path):
    shown = ("2", "trainer.strategy=ddp", f"run={tmp_path}", "trainer.rendezvous_seconds=60")
    first, second = (nodes.train(node, *shown) for node in (0, 1))
    wait_for(checkpoint_path(tmp_path / "pretrain" / CHECKPOINTS, 4), first)
    nodes.lose(0)
    said = second.communicate(timeout=60)[0]
    assert second.returncode == TRY_AGAIN and "the first node, 10.77.0.1, where all meet, is gone" in said, said
    first, second = (nodes.train(node, *shown) for node in (0, 1))
    assert_goes_on(first, tmp_path, alone)


SRUN = """#!/bin/bash
# two tasks on this machine; the first attempt of all is lost
shift
count=$(dirname "$0")/count
echo >> "$count"
[ "$(wc -l < "$count")" = 1 ] && exit 137
for task in 1 0; do
    SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=127.0.0.1 SLURM_JOB_ID=$PPID \\
        SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
wait -n && wait -n
"""


@pytest.fixture
def batch(tmp_path):
    """Runs a batch script of launch/ where srun starts two processes here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("aurora", f'#!/bin/bash\nexec {sys.executable} -m aurora "$@"\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                   "GLOO_SOCKET_IFNAME": "lo"}
    script = TOOL.parents[1] / "launch" / "many_nodes.sbatch"
    return lambda *overrides: subprocess.run(["bash", script, *overrides], env=environment, capture_output=True,
                                             text=True, cwd=TOOL.parents[1])


@LONG
def test_a_batch_script_trains_with_what_srun_starts_and_tries_again(batch, alone, tmp_path):
    done = batch(*TINY, "trainer.strategy=fsdp", f"run={tmp_path}")
    assert done.returncode == 0 and "attempt 1 ended with status 137" in done.stderr, done.stdout + done.stderr
    here = curve(tmp_path, "pretrain")
    assert [float(loss) for _, loss in here] == pytest.approx([float(loss) for _, loss in alone], rel=1e-5)


@LONG
def test_a_batch_script_does_not_try_what_cannot_work_again(batch, tmp_path):
    (tmp_path / "bin" / "count").write_text("\n")
    done = batch(*TINY, f"run={tmp_path}", "stages.pretrain.epochs=0")
    # of both processes, unless one was ended before
    errors = {line for line in done.stderr.splitlines() if line.startswith("aurora: error")}
    assert done.returncode == 2 and len(errors) == 1 and "stages.pretrain.epochs is 0" in errors.pop(), done.stderr
    assert "attempt" not in done.stderr


@LONG
def test_ray_starts_a_run_again_whose_process_was_killed(alone, tmp_path):
    pytest.importorskip("ray.train.torch")
    command = [sys.executable, "-m", "aurora", "train", "--ray", "2", *TINY, "trainer.strategy=ddp",
               f"run={tmp_path}"]
    process = subprocess.Popen(command, cwd=TOOL.parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = []
    for line in process.stdout:
        said.append(line)
        worker = re.search(r"pid=(\d+)\) world_rank=1", line)
        if worker:
            break
    wait_for(checkpoint_path(tmp_path / "pretrain" / CHECKPOINTS, 4), process)
    os.kill(int(worker[1]), signal.SIGKILL)
    said.append(process.communicate(timeout=300)[0])
    assert process.returncode == 0 and "resuming after step" in "".join(said), "".join(said)
    here = curve(tmp_path, "pretrain")
    assert [float(loss) for _, loss in here] == pytest.approx([float(loss) for _, loss in alone], rel=1e-5)


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say that a parent is gone")
def test_a_process_that_is_still_starting_ends_with_the_one_that_started_it(tmp_path):
    command = [sys.executable, "-m", "aurora", "train", *TINY, f"run={tmp_path}", "trainer.strategy=ddp",
               "trainer.devices=2"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    while not (second := children.read_text().split()):
        time.sleep(0.01)
    mapped, cmdline, environ = (Path(f"/proc/{second[0]}/{name}") for name in ("maps", "cmdline", "environ"))
    # until it runs its own program, it is a copy of the first one
    while b"LOCAL_RANK=" not in environ.read_bytes() or "libtorch" not in mapped.read_text():
        time.sleep(0.01)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 20
    while cmdline.exists() and cmdline.read_bytes():  # a dead one that nobody asks after has none
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), [
    (["--nodes", "many", "--first-node", "localhost"], "'many' is neither a number such as 2 nor a range such as 1:4"),
    (["--nodes", "2"], "--nodes 2 needs --first-node HOST"),
    (["--nodes", "2", "--first-node", "no.such.host.invalid"], "--first-node no.such.host.invalid: "),
    (["--nodes", "2", "--first-node", "localhost:http"], "'http' is not a port from 1 to 65535"),
    (["--nodes", "2", "--first-node", "localhost:70000"], "'70000' is not a port"),
    (["--nodes", "2", "--first-node", "::1"], "a name or an IPv4 address"),
    (["--nodes", "2", "--ray", "2"], "--nodes and --ray exclude each other"),
    (["--ray", "0"], "Invalid value for '--ray': Input should be greater than or equal to 1, not '0'"),
    (["--nodes", "4:2", "--first-node", "localhost"], "--nodes 4:2: the first number must not be above the second"),
    (["--nodes", "1", "--restarts", "-1"], "'--restarts': Input should be greater than or equal to 0, not '-1'"),
    (["--restarts", "2"], "--restarts needs --nodes or --ray"),
    (["--first-node", "localhost"], "--first-node needs --nodes"),
    (["--nodes", "1", "restart=true"], "restart=true removes"),
    (["--nodes", "1:2", "--first-node", "localhost", "trainer=ddp", "trainer.sequence_parallel=2"],
     "sequence_parallel is 2, which does not divide the 1 processes"),
])
def test_what_makes_no_sense_about_nodes_is_one_line(tmp_path, capsys, options, message):
    if options[0] == "--ray":
        pytest.importorskip("ray.train.torch")
    assert main(["train", *options, *TINY, f"run={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("aurora: error: ") and error.count("\n") == 1 and message in error
