"""Decodes what clients upload in a process of its own, which may use only so much time, memory and CPU.

What the process sends is a line of JSON or the bytes of a frame: nothing is unpickled that comes out of a decoder which
a client's file may have taken over.
"""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from aurora.errors import AuroraError, BadSample
from aurora.images import MAX_PIXELS, READABLE, decode_image
from aurora.inference.visuals import UnreadableVisual, is_image
from aurora.interfaces import Sampling
from aurora.options import PositiveFloat, PositiveInt
from aurora.registry import READER

_MESSAGE = 1 << 16
_WRITTEN = 1 << 20  # bytes of a file: it may say on standard error why it failed
_SAFE_TO_REPEAT = 300  # characters of an error


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding the files of one request may take."""

    seconds: PositiveFloat = 3600.0
    """In which the next frame must come, and which the processor may work in all; a client that reads slowly is
    someone else's fault."""
    memory_bytes: PositiveInt = 2 << 30
    """On top of what the process has mapped when it starts."""


def start(reader: Mapping[str, Any]) -> None:
    """Starts the process that the others are forked from, which has imported the `reader` of this config."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "aurora.cli", READER.get(reader["name"]).__module__])
    forkserver.ensure_running()


def frames(
    files: Sequence[Path], sampling: Sampling, reader: Mapping[str, Any], limits: DecodeLimits,
    on_count: Callable[[int, float], None] = lambda count, lasting: None,
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, [H, W, 3] uint8) of videos and images one behind the other; `on_count` is told how many there will be,
    and how many seconds all of it lasts.

    UnreadableVisual for a file that is no readable video or image, or that takes more than the limits. Leaving early
    ends the process.
    """
    context = multiprocessing.get_context("forkserver")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_decode, args=(sending, [*map(str, files)], sampling, dict(reader), limits),
                              daemon=True)
    process.start()
    sending.close()
    try:
        yield from _received(receiving, process, limits, on_count)
    finally:
        process.kill()
        process.join()
        process.close()
        receiving.close()


def _received(receiving: Connection, process: Any, limits: DecodeLimits, on_count: Callable[[int, float], None]
              ) -> Iterator[tuple[float, np.ndarray]]:
    while True:
        try:
            if not receiving.poll(limits.seconds):
                raise UnreadableVisual(f"no frame was decoded within {limits.seconds:g} s")
            told = json.loads(receiving.recv_bytes(_MESSAGE))
            if "frames" in told:
                on_count(int(told["frames"]), float(told["lasting"]))
            elif "shape" in told:
                height, width = map(int, told["shape"])
                if not 0 < height * width <= MAX_PIXELS:
                    raise UnreadableVisual(f"frames of {width}×{height} pixels are more than {MAX_PIXELS}")
                raw = receiving.recv_bytes(height * width * 3)
                yield float(told["seconds"]), np.frombuffer(bytearray(raw), np.uint8).reshape(height, width, 3)
            elif "error" in told:
                raise UnreadableVisual(str(told["error"]))
            else:
                return
        except UnreadableVisual:
            raise
        except (EOFError, OSError, ValueError, KeyError, TypeError):  # it died, or says what it should not
            process.join(5)
            raise UnreadableVisual(_why(process.exitcode, limits)) from None


def _why(exit_code: int | None, limits: DecodeLimits) -> str:
    if exit_code == -signal.SIGXCPU:
        return f"decoding took more than {limits.seconds:g} s of the processor"
    return "the decoder failed: the file is broken, or it needs more memory than a video may"


def _decode(sending: Connection, files: Sequence[str], sampling: Sampling, reader: Mapping[str, Any],
            limits: DecodeLimits) -> None:
    """In the process."""
    _restrict(limits)
    try:
        for seconds, frame in _frames(sending, files, sampling, reader):
            _tell(sending, seconds=seconds, shape=frame.shape[:2])
            sending.send_bytes(np.ascontiguousarray(frame).reshape(-1).data)
        _tell(sending, end=True)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody wants the rest
    except MemoryError:
        _tell(sending, error="decoding needs more memory than a video may")
    except (AuroraError, BadSample, OSError) as error:
        # a path on this machine is nobody's business
        text = error.detail if isinstance(error, BadSample) else str(error)
        for number, file in enumerate(files, 1):
            text = text.replace(file, f"file {number}").replace(Path(file).name, f"file {number}")
        _tell(sending, error=text[:_SAFE_TO_REPEAT])


def _frames(sending: Connection, files: Sequence[str], sampling: Sampling, reader: Mapping[str, Any]
            ) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of all files, each file's seconds behind those of the one before."""
    read = READER.build(reader)
    stills = [is_image(file) for file in files]
    counts = [1 if still else len(read.times(file, sampling)) for file, still in zip(files, stills, strict=True)]
    gap = 1.0 if sampling.fps is None else 1 / sampling.fps  # for which an image is shown
    lasting = [gap if still else read.duration(file) or 0.0 for file, still in zip(files, stills, strict=True)]
    _tell(sending, frames=sum(counts), lasting=sum(lasting))
    offset = 0.0
    for file, still, seconds_of_file in zip(files, stills, lasting, strict=True):
        shown: Any = [(0.0, decode_image(Path(file).read_bytes(), formats=READABLE))] if still \
            else read.read(file, sampling)
        for seconds, frame in shown:
            yield offset + seconds, frame
        offset += seconds_of_file


def _tell(sending: Connection, **told: Any) -> None:
    sending.send_bytes(json.dumps(told).encode())


def _restrict(limits: DecodeLimits) -> None:
    """Lowers what this process may use, and ends it with its parent."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    os.nice(5)  # answers go before films
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        mapped = pages * resource.getpagesize() + limits.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (mapped, mapped))
    used = time.process_time()
    cpu = int(used + limits.seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_WRITTEN, _WRITTEN))
