"""From what is watched to visual tokens: decoding and the encoder run ahead in threads of their own, so that watching
takes as long as its slowest part.

Shape letters: N frames, M tokens kept per frame, D backbone width.
"""

import ctypes
import hashlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from aurora.inference.graphs import GraphedEncoder
from aurora.inference.reading import Chunk, encode, frames_per_chunk
from aurora.interfaces import FrameSkip, VisualLayout
from aurora.model import AuroraModel

T = TypeVar("T")
log = logging.getLogger(__name__)
FRAMES_AHEAD = 16
CHUNKS_AHEAD = 2
SMALL_WIDTH = 256
"""Of an encoder up to which more than one thread gains nothing while others are busy."""
_POLL_SECONDS = 0.1


class Shot(NamedTuple):
    """One prepared frame."""

    seconds: float  # when it is shown, after the beginning of what is watched
    pixels: Tensor  # [3, h, w] uint8
    keep: int  # M
    skipped: bool  # it shows nothing new, so it is not read
    sha256: str = ""  # of the pixels; made where frames are decoded, since whoever reads them has more to do


class Unit(NamedTuple):
    """The next frames, and tokens once they fill a chunk. Chunks begin at the same frames however frames arrive, so
    that the same film always has the same state."""

    new: tuple[Shot, ...]  # since the unit before
    pending: tuple[Shot, ...]  # frames that wait for the rest of their chunk
    chunk: Chunk | None = None  # stacked where frames are decoded, while they are in the caches there
    tokens: Tensor | None = None  # [T, D] of the chunk
    moment: float | None = None  # everything shown up to this second has been given


def prepared(
    frames: Iterable[tuple[float, np.ndarray]], layout: VisualLayout, skip: FrameSkip, reference: Tensor | None
) -> Iterator[Shot]:
    """Every frame (seconds, [H, W, 3] uint8) as the encoder takes it; `reference` is the last one read before."""
    for seconds, frame in frames:
        pixels = layout.prepare(frame)
        skipped = reference is not None and skip.skips(pixels, reference)
        reference = reference if skipped else pixels
        digest = hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()
        yield Shot(seconds, pixels, layout.tokens(*frame.shape[:2]), skipped, digest)


def units(shots: Iterable[Shot], pending: Sequence[Shot], moments: Sequence[float] = (), *, each: bool = False
          ) -> Iterator[Unit]:
    """The frames in units that end where a chunk is full, and at every moment in front of a frame; with `each`, a unit
    per frame."""
    new: list[Shot] = []
    waiting, ahead = list(pending), list(moments)
    for shot in shots:
        while ahead and shot.seconds > ahead[0]:
            yield Unit(tuple(new), tuple(waiting), moment=ahead.pop(0))
            new = []
        if not shot.skipped and waiting and not _alike(shot, waiting[0]):
            yield Unit(tuple(new), (), chunk_of(waiting))
            new, waiting = [], []
        new.append(shot)
        if not shot.skipped:
            waiting.append(shot)
        if waiting and len(waiting) >= frames_per_chunk(*waiting[0].pixels.shape[1:]):
            yield Unit(tuple(new), (), chunk_of(waiting))
            new, waiting = [], []
        elif each:
            yield Unit(tuple(new), tuple(waiting))
            new = []
    yield Unit(tuple(new), tuple(waiting))


def _alike(one: Shot, other: Shot) -> bool:
    return one.keep == other.keep and one.pixels.shape == other.pixels.shape


def chunk_of(shots: Sequence[Shot]) -> Chunk:
    """Frames of one shape as a chunk."""
    return Chunk(torch.stack([shot.pixels for shot in shots]), shots[0].keep, [shot.seconds for shot in shots])


def ingest(model: AuroraModel, items: Iterator[Unit], read: Callable[[Unit], None], *, chunks: bool) -> Iterator[Unit]:
    """Gives the units, after `read` was given them with the tokens of their chunks. A thread decodes ahead, by `chunks`
    where every unit is one; the encoder runs ahead in a thread of its own, or takes turns with `read`."""
    threads, take_turns = stage_threads(model)
    decoding = 1 if _on_cpu(model) else threads
    # each item that is handed on takes the interpreter from the encoder for a moment
    tokens = encoded(model, ahead(items, CHUNKS_AHEAD if chunks else FRAMES_AHEAD, decoding))
    with closing(tokens if take_turns else ahead(tokens, CHUNKS_AHEAD, threads)) as done:
        for unit in done:
            with with_threads(threads):
                read(unit)
            yield unit


def stage_threads(model: AuroraModel) -> tuple[int, bool]:
    """CPU threads of the encoder and of the backbone each while a video is watched, and whether the two take turns.

    Where several threads of a CPU compute, a large encoder and a backbone occupy all of them in turn. Of small ones
    each has one: their products are so short that threads wait for each other most of the time.
    """
    threads = torch.get_num_threads()
    if not _on_cpu(model):
        return threads, False
    large = model.vision.width > SMALL_WIDTH
    return threads if large else 1, large and threads > 1


def _on_cpu(model: AuroraModel) -> bool:
    return next(model.vision.parameters()).device.type == "cpu"


def encoded(model: AuroraModel, items: Generator[Unit, None, None]) -> Generator[Unit, None, None]:
    """The units with the tokens of their chunks. On a GPU they are computed in a stream of their own."""
    device, encoder = next(model.vision.parameters()).device, GraphedEncoder(model)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    with closing(items):  # after an error too, while its traceback holds this frame
        for unit in items:
            if unit.chunk is None:
                yield unit
            elif stream is None:
                yield unit._replace(chunk=None, tokens=encode(model, unit.chunk, encoder))
            else:
                with torch.cuda.stream(stream):
                    tokens = encode(model, unit.chunk, encoder)
                stream.synchronize()
                yield unit._replace(chunk=None, tokens=tokens)


def ahead(items: Iterator[T], size: int, threads: int) -> Generator[T, None, None]:
    """The same items, fetched in a thread of its own, up to `size` of them in advance; its errors are raised here. It
    computes with so many `threads` of the CPU.

    The thread ends when the iterator is closed.
    """
    fetched: Queue[tuple[Any, BaseException | None]] = Queue(size)
    closed, end = Event(), object()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            with suppress(Full):
                fetched.put((item, error), timeout=_POLL_SECONDS)
                return True
        return False

    def fetch() -> None:
        try:
            _set_threads(threads)
            if all(map(put, items)):
                put(end)
        except BaseException as error:  # raised again where the items are taken
            put(end, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = Thread(target=fetch, daemon=True, name="aurora-ahead")
    thread.start()
    try:
        while True:
            item, error = _get(fetched, thread)
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        closed.set()
        thread.join()


def _get(fetched: "Queue[tuple[Any, BaseException | None]]", thread: Thread) -> tuple[Any, BaseException | None]:
    """What was fetched next; RuntimeError where the thread ended without a word, as in an interpreter that ends."""
    while True:
        try:
            return fetched.get(timeout=_POLL_SECONDS)
        except Empty:
            if not thread.is_alive() and fetched.empty():
                raise RuntimeError("the thread that reads what is watched has ended") from None


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """The calling thread, and no other, computes with so many threads."""
    before = _set_threads(count)
    try:
        yield
    finally:
        _set_threads(before)


def _set_threads(count: int) -> int:
    """Sets the number of threads that the calling one computes with, and gives what it was.

    `torch.set_num_threads` would set it for threads that begin later as well, so the libraries that compute are asked
    themselves. Where they cannot be, it stays as it is.
    """
    before = torch.get_num_threads()
    if count != before:
        for set_threads in _thread_setters():
            set_threads(count)
    return before


@cache
def _thread_setters() -> list[Callable[[int], object]]:
    """What sets the number of threads of OpenMP and of MKL for the calling thread alone, as far as torch has them."""
    # of what torch is linked with; these return at once, so the GIL need not be released
    libraries = ctypes.PyDLL(torch._C.__file__)
    names = ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")
    found = [getattr(libraries, name) for name in names if hasattr(libraries, name)]
    if not found:
        log.info("threads are not divided while watching: this torch has neither OpenMP nor MKL to ask")
    return found
