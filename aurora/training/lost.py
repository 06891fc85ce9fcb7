"""One line when a process of several is lost, in the place of the traceback of whatever the others waited in."""

from __future__ import annotations

import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from aurora.errors import LostProcess

# What gloo, NCCL and the store say when the other end is gone or no longer answers. Other errors of theirs, such as
# collectives that do not fit together, are defects of ours, whose traceback is wanted.
GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|socket closed|pair closure|failed to recv|got 0 bytes|"
    r"connection refused|connection was likely closed|timed out (waiting|connecting)|wait timeout|socket timeout|"
    r"remote process exited|ncclremoteerror|communicator was aborted|collective operation timeout", re.IGNORECASE)


def says_lost(error: BaseException) -> bool:
    """Whether an error is what a process gets when another one is gone."""
    if isinstance(error, LostProcess):
        return True
    said = str(error)
    network = isinstance(error, dist.DistError) or "gloo/" in said or "NCCL" in said
    return isinstance(error, RuntimeError) and network and GONE.search(said) is not None


@contextmanager
def lost_processes_told(folder: Path, step: Callable[[], int | None]) -> Iterator[None]:
    """Raises LostProcess when another process is lost in the block; the traceback goes to `folder`.

    `step` is asked after which step that was; None: not while training.
    """
    try:
        yield
    except LostProcess:
        raise
    except Exception as error:
        if not says_lost(error):
            raise
        kept = keep_traceback(folder, error)
        done = step()
        when = "outside of training" if done is None else f"after step {done}"
        raise LostProcess(
            f"rank {_rank()} on {socket.gethostname()} lost another process {when}, which was killed or has "
            f"said itself what failed ({_reason(error)}). The same command goes on at the last checkpoint; {kept}"
        ) from error


def keep_traceback(folder: Path, error: BaseException) -> str:
    """Appends a traceback to this rank's file below `folder`; what there is to say of it."""
    path = folder / f"rank-{_rank()}.txt"
    # on a full disk, or a file server that went with the other process
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines([*traceback.format_exception(error), "\n"])
        return f"{path} has the traceback"
    return "AURORA_DEBUG=1 shows the traceback"


def _rank() -> int:
    """This process's, also while it has not met the others."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _reason(error: BaseException) -> str:
    """What the library says, in its first sentence, without the place in its own source."""
    return re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).partition(". ")[0][:200]
