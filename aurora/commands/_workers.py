"""Options of commands that run in several processes, and what they make of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from aurora.commands._options import Adapter
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.inference.workers import WorkerModel
    from aurora.interfaces import Executor

Jobs: TypeAlias = Annotated[int | None, typer.Option(
    metavar="N", min=1, help="Processes that watch, each with a model. Default: one per device.")]
Devices: TypeAlias = Annotated[str, typer.Option(metavar="DEVICES", help="Where they run, such as cuda:0,cuda:1.")]
Threads: TypeAlias = Annotated[int | None, typer.Option(
    metavar="N", min=1, help="Threads of each on the CPU. Default: the cores, shared evenly.")]


def worker_model(folder: Path, overrides: Iterable[str], adapter: Adapter, devices: list[str], threads: int | None,
                 claims: Path) -> "WorkerModel":
    """The model that every process loads. AuroraError where it cannot be one, before any process is started."""
    import torch

    from aurora.config import parse_override, read_config
    from aurora.inference.workers import WorkerModel
    from aurora.registry import PROMPT

    overrides = tuple(overrides)
    config = read_config(folder).override(overrides)
    asked = {parse_override(override).key_or_group.partition(".")[0] for override in overrides}
    if "prompt" in asked and not PROMPT.build(config.prompt).reusable:
        raise AuroraError(f"the prompt {config.prompt['name']} begins with the question, so a video would be read "
                          "again for every one; choose prompt=generic")
    share = max(1, torch.get_num_threads() // len(devices))
    return WorkerModel(str(folder), overrides, adapter.adapter, adapter.any_base, tuple(devices), threads or share,
                       str(claims) if len(set(devices)) > 1 else None)


def make_executor(name: str, options: Mapping[str, Any], jobs: int) -> "Executor":
    """The part with further options; `process` has so many workers."""
    from aurora.config import named_part
    from aurora.registry import EXECUTOR

    if name == "slurm":
        raise AuroraError("--executor slurm cannot run this; give every job of an array its --part "
                          "$SLURM_ARRAY_TASK_ID/N instead")
    own = {"workers": jobs} if name == "process" else {}
    return EXECUTOR.build({**named_part("executor", name), **own, **options})


def device_of_each(given: str, jobs: int | None, executor: str) -> list[str]:
    """The device of every process. AuroraError where one is not here."""
    import torch

    from aurora.inference.models import use

    devices = [device.strip() for device in given.split(",") if device.strip()]
    if not devices:
        raise AuroraError("--devices is empty; give cpu, cuda or several such as cuda:0,cuda:1")
    if executor != "process" and (jobs is not None or len(devices) > 1):
        raise AuroraError(f"--jobs and several --devices are for --executor process, not {executor}"
                          + ("; Ray gives every task its GPU: --devices cuda executor.gpus=1" * (executor == "ray")))
    count = len(devices) if jobs is None else jobs
    if count < len(devices):
        raise AuroraError(f"--jobs {jobs} leaves some of the {len(devices)} --devices without a process")
    for device in dict.fromkeys(devices) if executor != "ray" else ():  # whose machines have others
        # memory of a GPU that is merely looked for would be taken for as long as this process runs
        if not (device.startswith("cuda:") and device[5:].isdecimal() and int(device[5:]) < torch.cuda.device_count()):
            use(device, None)
    return [devices[number % len(devices)] for number in range(count)]
