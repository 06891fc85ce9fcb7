"""Peak memory of one contestant, measured in a process that holds nothing else.

Run as `python -m tools.bench.memory`, this file is that process: it reads who is to be measured from standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError
from tools.bench.case import Settings, cases_of

SECONDS = 300


def peak_bytes(bench: str, case: str, contestant: str, settings: Settings) -> int | None:
    """What building the contestant and one run add at most to a process that has imported torch, with all that the
    processes which it starts take; on CUDA the device's memory. None where the system does not say."""
    request = {"bench": bench, "case": case, "contestant": contestant, "settings": asdict(settings)}
    done = subprocess.run([sys.executable, "-m", "tools.bench.memory"], input=json.dumps(request, default=str),
                          capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise AuroraError(f"it ended with status {done.returncode} in a process of its own. "
                          f"{done.stderr.strip()[-300:]}")
    peak: int | None = json.loads(done.stdout.splitlines()[-1])
    return peak


def main() -> None:
    """The measuring process."""
    request = json.loads(sys.stdin.read())
    settings = _settings(request["settings"])
    case = next(case for case in cases_of(request["bench"], settings) if case.name == request["case"])
    contestant = next(one for one in case.contestants if one.name == request["contestant"])
    before = _start(settings)
    work = contestant.build()
    work()
    peak = _peak(settings, before)
    del work  # a training ends, and may say so
    sys.stdout.write(f"\n{json.dumps(peak)}\n")


def _settings(given: dict[str, Any]) -> Settings:
    weights = given["weights"]
    return Settings(**{**given, "dtypes": tuple(given["dtypes"]), "folder": Path(given["folder"]),
                       "weights": None if weights is None else Path(weights)})


def _start(settings: Settings) -> int | None:
    import torch

    torch.set_num_threads(settings.threads)
    if settings.gpu:
        torch.cuda.reset_peak_memory_stats(settings.device)
        return 0
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
        return _status("VmRSS")
    except OSError:
        return None


def _peak(settings: Settings, before: int | None) -> int | None:
    if settings.gpu:
        import torch

        return torch.cuda.max_memory_allocated(settings.device)
    if before is None:
        return None
    children = [child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]
    return _status("VmHWM") - before + sum(_status("VmHWM", child) for child in children)


def _status(field: str, process: str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/{process}/status has no {field}")


if __name__ == "__main__":
    main()
