import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from aurora.errors import AuroraError
from aurora.files import replace_file
from aurora.interfaces.data import Executor, R, ShellTask, T
from aurora.options import PositiveInt
from aurora.registry import EXECUTOR

_POLL_SECONDS = 5.0
_SCRIPT = """#!/bin/bash
#SBATCH --job-name=aurora
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --output={folder}/slurm-%a.log
{options}
# Every line of tasks is one task; this job does each {jobs}th of them, from its own number on.
failed=0
while read -r line; do bash -c "$line" < /dev/null || failed=1
done < <(awk "(NR - 1) % {jobs} == ${{SLURM_ARRAY_TASK_ID:?}}" {tasks})
exit "$failed"
"""


@EXECUTOR.register
class SlurmExecutor(Executor):
    """An array of `jobs` jobs, each with `cpus` cores for `time`, that see the same folders under the same paths.

    Writes the script into `folder` and hands it to `sbatch`; where there is none, says what to run. Then waits up to
    `wait` seconds for what the tasks leave, by default not at all: run again to see how far they are. `options` are
    further ones of sbatch, such as ["--partition=cpu"].
    """

    def __init__(
        self, *, folder: str, jobs: PositiveInt = 32, cpus: PositiveInt = 1, time: str = "24:00:00",
        wait: Annotated[float, Ge(0)] = 0.0, options: list[str] | None = None,
    ) -> None:
        self._folder, self._jobs, self._cpus, self._time = Path(folder), jobs, cpus, time
        self._wait, self._options = wait, options or []

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        tasks = list(tasks)
        shell = [task for task in tasks if isinstance(task, ShellTask)]
        if len(shell) < len(tasks):
            other = next(task for task in tasks if not isinstance(task, ShellTask))
            raise AuroraError(f"executor 'slurm': {other!r} cannot be run from a shell; building shards can")
        if shell:
            yield from self._waited(shell, self._submit(shell))

    def _submit(self, tasks: Sequence[ShellTask]) -> str:
        """Writes the script and says what was, or has to be, done with it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder.resolve()
        job = folder / "slurm-job.txt"
        if _is_queued(job):
            return f"job {job.read_text()} is still queued or running"
        lines, script = folder / "slurm-tasks.txt", folder / "slurm.sh"
        commands = [[sys.executable, "-m", "aurora", *task.command()] for task in tasks]
        replace_file(lines, "".join(shlex.join(command) + "\n" for command in commands).encode())
        jobs = min(self._jobs, len(tasks))
        replace_file(script, _SCRIPT.format(
            last=jobs - 1, jobs=jobs, cpus=self._cpus, time=self._time, folder=folder, tasks=shlex.quote(str(lines)),
            options="".join(f"#SBATCH {option}\n" for option in self._options)).encode())
        if shutil.which("sbatch") is None:
            return f"no sbatch here; where there is one, run: sbatch {shlex.quote(str(script))}"
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise AuroraError(f"executor 'slurm': sbatch refused {script}: {done.stderr.strip()}")
        replace_file(job, done.stdout.split()[-1].encode())
        return done.stdout.strip()

    def _waited(self, tasks: Sequence[ShellTask], said: str) -> Iterator[Any]:
        until = time.monotonic() + self._wait
        while True:
            results = [(task, task.result()) for task in tasks]
            yield from (result for _, result in results if result is not None)
            tasks = [task for task, result in results if result is None]
            if not tasks:
                return
            if time.monotonic() >= until:
                raise AuroraError(f"executor 'slurm': {said}. {len(tasks)} task(s) are not done; run the same command "
                                  "again, once they are, to join what they wrote")
            time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))


def _is_queued(job: Path) -> bool:
    """Whether SLURM still knows the job that a file names."""
    if not job.is_file() or shutil.which("squeue") is None:
        return False
    asked = ["squeue", "--noheader", "--job", job.read_text()]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())
