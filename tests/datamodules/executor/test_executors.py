"""Executors: what they give, what ends them, and the array of jobs that SLURM is handed."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.registry import EXECUTOR

pytestmark = pytest.mark.process

HERE = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["serial", "process"])
def test_every_task_is_done_once(name):
    assert sorted(EXECUTOR.build({"name": name}).run(abs, range(-20, 0))) == list(range(1, 21))


@pytest.mark.parametrize("name", ["serial", "process"])
def test_no_task_is_no_work(name):
    assert list(EXECUTOR.build({"name": name}).run(abs, [])) == []


@pytest.mark.parametrize("options", [{"name": "serial"}, {"name": "process", "workers": 1}], ids=str)
def test_the_error_of_a_task_is_raised(options):
    with pytest.raises(TypeError):
        list(EXECUTOR.build(options).run(abs, ["x"]))


@pytest.mark.parametrize("options", [{"name": "process", "workers": 0}, {"name": "ray", "cpus": 0},
                                     {"name": "slurm", "folder": "x", "jobs": 0}])
def test_an_option_that_makes_no_sense_is_refused(options):
    with pytest.raises(AuroraError, match="must be"):
        EXECUTOR.build(options)


@pytest.mark.parametrize(("end", "reported"), [
    ("kill(os.getpid(), 2)", r"ended with SIGINT\. Run again"),
    ("kill(os.getpid(), 9)", r"ended with SIGKILL, perhaps because memory ran out"),
    ("_exit(3)", r"ended with status 3\. Run again"),
], ids=["SIGINT", "SIGKILL", "exit"])
def test_a_worker_that_dies_is_told_by_what_it_died_of(end, reported):
    tasks = [f"(os := __import__('os')).{end}", *["__import__('time').sleep(60)"] * 2]
    with pytest.raises(AuroraError, match=reported):
        list(EXECUTOR.build({"name": "process", "workers": 2}).run(eval, tasks))


PARENT = """
import os, sys, time
from aurora.registry import EXECUTOR

def main():
    for pid in EXECUTOR.build({"name": "process", "workers": 1}).run(eval, ["__import__('os').getpid()"]):
        print(pid, flush=True)
        time.sleep(60)

if __name__ == "__main__":
    main()
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        worker = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    for _ in range(500):
        if not Path(f"/proc/{worker}").exists() or "State:\tZ" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


# ---- SLURM -----------------------------------------------------------------------------------------------------

STAND_IN = """#!/bin/bash
# Does what sbatch would have done elsewhere: every job of the array, here and at once.
last=$(sed -n 's/^#SBATCH --array=0-//p' "$1")
for job in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$job bash "$1" || exit 1; done
echo "Submitted batch job 17"
"""


@pytest.fixture
def dataset(make, tmp_path):
    folder = tmp_path / "an input"
    folder.mkdir()
    rows = [{"id": number, "image": f"{number}.jpg", "conversations": make.talk(number)} for number in range(3)]
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(make.picture(number))
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def build(dataset, output, executor, *more):
    return main(["shards", "build", "llava", str(dataset), str(output), "source.annotations=a.jsonl",
                 "--samples-per-shard", "1", "--executor", executor, *more])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_array_of_jobs_gives_the_same_bytes(dataset, tmp_path, monkeypatch):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text(STAND_IN)
    (commands / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    assert build(dataset, tmp_path / "with space", "slurm", "executor.jobs=2") == 0
    assert build(dataset, tmp_path / "serial", "serial") == 0
    assert files(tmp_path / "with space") == files(tmp_path / "serial")


def test_without_sbatch_the_script_is_left_and_named(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert build(dataset, tmp_path / "out", "slurm", "executor.options=['--partition=cpu']") == 2
    reported = capsys.readouterr().err
    script = tmp_path / "out" / ".build" / "slurm.sh"
    assert f"run: sbatch {script}" in reported and "3 task(s) are not done" in reported
    assert "#SBATCH --partition=cpu\n" in script.read_text() and "#SBATCH --array=0-2\n" in script.read_text()
    monkeypatch.undo()
    for number in range(3):
        assert main(["shards", "work", str(tmp_path / "out"), "--task", str(number)]) == 0
    assert build(dataset, tmp_path / "out", "slurm") == 0


def test_an_array_that_was_refused_says_why(dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'no such partition' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert build(dataset, tmp_path / "out", "slurm") == 2
    assert "no such partition" in capsys.readouterr().err


def test_a_job_that_still_runs_is_not_handed_in_twice(dataset, tmp_path, monkeypatch, capsys):
    for name, said in (("sbatch", "Submitted batch job 17"), ("squeue", "17 cpu aurora")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {said}\necho {name} >> {tmp_path}/calls\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [build(dataset, tmp_path / "out", "slurm") for _ in range(2)] == [2, 2]
    assert "job 17 is still queued or running" in capsys.readouterr().err
    assert (tmp_path / "calls").read_text().split() == ["sbatch", "squeue"]


def test_tasks_that_no_shell_can_be_told_are_refused(tmp_path):
    with pytest.raises(AuroraError, match="cannot be run from a shell"):
        list(EXECUTOR.build({"name": "slurm", "folder": str(tmp_path)}).run(abs, [1]))
