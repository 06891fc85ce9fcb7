"""Aurora beside other people's software: does a work in Aurora and in whatever else can do it here, in turns, after
checking that the results agree.

    python -m tools.bench kernels --quick
    python -m tools.bench decode --dtype bfloat16 --out runs/bench/decode

Shows medians and quartiles, how many times longer the others take, and which share of the machine's measured limit was
reached. Writes results.json, results.md and results.png; docs/evidence/benchmarks/README.md explains them.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from aurora.errors import AuroraError
from tools.bench.case import BENCHES, Settings, cases_of
from tools.bench.machine import describe
from tools.bench.report import console_table, write_results
from tools.bench.run import run_case

FILE_WIDTH = 140


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when a contestant failed, 2 when the options are wrong."""
    parser = argparse.ArgumentParser("python -m tools.bench", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="WHAT", choices=(*BENCHES, "all"), help=f"{', '.join(BENCHES)} or all")
    parser.add_argument("--out", metavar="FOLDER", default="runs/bench", help="(default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows in seconds that it runs, not how fast")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "int8"),
                        help="only cases in this dtype; may be repeated")
    parser.add_argument("--weights", metavar="FILE", help="an RWKV-6 1.6B .pth for prefill, decode, vision (default: "
                        "random weights, deleted at the end)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    options = parser.parse_args(arguments)
    try:
        return _bench(options)
    except AuroraError as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        return 2


def _bench(options: argparse.Namespace) -> int:
    """Measures, shows every case when it is done, and writes the results."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    out = Path(options.out)
    with _settings(options, out) as settings:
        benches = [*BENCHES] if options.what == "all" else [options.what]
        planned = [(name, case) for name in benches for case in cases_of(name, settings)]
        if not planned:
            raise AuroraError(f"{options.what} has no case in {' or '.join(settings.dtypes)}; leave out --dtype")
        machine = describe(settings.device, shlex.join(["python", "-m", "tools.bench", *sys.argv[1:]]))
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
def _settings(options: argparse.Namespace, out: Path) -> Iterator[Settings]:
    """The settings, with a folder for the contestants' files that is deleted at the end."""
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        raise AuroraError(f"--device {options.device}: only cpu and cuda can be timed")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise AuroraError(f"--device {options.device}: torch finds no such device here")
    if options.threads is not None:
        if options.threads < 1:
            raise AuroraError(f"--threads {options.threads}: must be at least 1")
        torch.set_num_threads(options.threads)
    weights = None if options.weights is None else Path(options.weights)
    if weights is not None and not weights.is_file():
        raise AuroraError(f"--weights {weights}: no such file; give an RWKV-6 1.6B .pth, or leave it out for random "
                          "weights")
    if weights is not None and options.quick:
        raise AuroraError("--weights is of the full size, --quick of a small one; give one of them")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=out) as folder:
        yield Settings(device=options.device, dtypes=tuple(options.dtype or ()), quick=options.quick, weights=weights,
                       folder=Path(folder).absolute(), threads=torch.get_num_threads())


if __name__ == "__main__":
    sys.exit(main())
