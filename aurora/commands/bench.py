"""`aurora bench`."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.bench.case import Settings

FILE_WIDTH = 140


def bench(options: Namespace) -> int:
    """Measures, shows every case when it is done, and writes the results; 1 when a contestant failed."""
    from rich.console import Console

    from aurora.bench.machine import describe
    from aurora.bench.report import console_table, write_results
    from aurora.bench.run import BENCHES, cases_of, run_case

    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    out = Path(options.out)
    with _settings(options, out) as settings:
        benches = [*BENCHES] if options.what == "all" else [options.what]
        planned = [(name, case) for name in benches for case in cases_of(name, settings)]
        if not planned:
            raise AuroraError(f"{options.what} has no work in {' or '.join(settings.dtypes)}; leave --dtype away")
        machine = describe(settings.device, shlex.join(["aurora", *sys.argv[1:]]))
        console.print(f"{machine['device']}, {machine['threads']} threads")
        results = []
        for name, case in planned:
            results.append(run_case(name, case, settings))
            console.print(console_table(results[-1]))
            # written again after every case: what is measured is kept when the run is stopped
            write_results(out, machine, results)
    console.print(f"{out}/results.json, results.md, results.png")
    return 1 if any(row.status == "failed" for result in results for row in result.rows) else 0


@contextlib.contextmanager
def _settings(options: Namespace, out: Path) -> Iterator[Settings]:
    """What the user asked for, with a folder for the contestants' files that goes away at the end."""
    import torch

    from aurora.bench.case import Settings
    from aurora.commands.finding import use

    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        raise AuroraError(f"--device {options.device}: works are timed on cpu and cuda only")
    use(options.device, options.threads)
    weights = None if options.weights is None else Path(options.weights)
    if weights is not None and not weights.is_file():
        raise AuroraError(f"--weights {weights}: there is no such file; give an RWKV-6 1.6B .pth, or leave it away for "
                          "random weights")
    if weights is not None and options.quick:
        raise AuroraError("--weights is of the full size, --quick of a small one; give one of them")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=out) as folder:
        yield Settings(device=options.device, dtypes=tuple(options.dtype or ()), quick=options.quick, weights=weights,
                       folder=Path(folder).absolute(), threads=torch.get_num_threads())
