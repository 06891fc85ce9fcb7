"""`aurora bench`."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aurora.commands._options import Device
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.bench.case import Settings

FILE_WIDTH = 140


def bench(
    *,
    what: Annotated[Literal["kernels", "prefill", "decode", "vision", "train", "data", "all"], typer.Argument(
        metavar="WHAT", help="kernels, prefill, decode, vision, train, data or all.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results go.")] = Path("runs/bench"),
    quick: Annotated[bool, typer.Option(
        "--quick", help="Small sizes: shows in seconds that it runs, not how fast.")] = False,
    dtype: Annotated[list[str], typer.Option(
        metavar="NAME", default_factory=list, show_default=False,
        help="Measure only in float32, bfloat16 or int8. May be repeated.")],
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help=(
        "An RWKV-6 1.6B .pth for prefill, decode and vision. Default: random weights."))] = None,
    device: Device,
) -> int:
    """Measure speed and memory beside other implementations.

    Does a work in Aurora and in whatever else can do it here, in turns, after checking that the results agree. Shows
    medians and quartiles, how many times longer the others take, and which share of what the machine was measured to
    be able to was reached. Writes results.json, results.md and results.png.

    kernels: the operators under the backbones. prefill, decode: RWKV-6 1.6B. vision: SigLIP-L/16-384, and a whole
    model. train: a training step. data: building shards, reading them, decoding videos. all: one after the other.
    docs/benchmarks/ says how to read the results.

    \b
    example:
      aurora bench kernels --quick
      aurora bench decode --dtype bfloat16 --out runs/bench/decode
    """
    from rich.console import Console

    from aurora.bench.machine import describe
    from aurora.bench.report import console_table, write_results
    from aurora.bench.run import BENCHES, cases_of, run_case

    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    with _settings(dtype, quick, weights, device, out) as settings:
        benches = [*BENCHES] if what == "all" else [what]
        planned = [(name, case) for name in benches for case in cases_of(name, settings)]
        if not planned:
            raise AuroraError(f"{what} has no work in {' or '.join(settings.dtypes)}; leave --dtype away")
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
def _settings(dtypes: Sequence[str], quick: bool, weights: Path | None, device: Device, out: Path
              ) -> Iterator[Settings]:
    """What the user asked for, with a folder for the contestants' files that goes away at the end."""
    import torch

    from aurora.bench.case import Settings
    from aurora.inference.models import use

    if device.device.partition(":")[0] not in ("cpu", "cuda"):
        raise AuroraError(f"--device {device.device}: works are timed on cpu and cuda only")
    if unknown := set(dtypes) - {"float32", "bfloat16", "int8"}:
        raise AuroraError(f"--dtype {unknown.pop()}: must be one of float32, bfloat16, int8")
    use(device.device, device.threads)
    if weights is not None and not weights.is_file():
        raise AuroraError(f"--weights {weights}: there is no such file; give an RWKV-6 1.6B .pth, or leave it away for "
                          "random weights")
    if weights is not None and quick:
        raise AuroraError("--weights is of the full size, --quick of a small one; give one of them")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=out) as folder:
        yield Settings(device=device.device, dtypes=tuple(dtypes), quick=quick, weights=weights,
                       folder=Path(folder).absolute(), threads=torch.get_num_threads())
