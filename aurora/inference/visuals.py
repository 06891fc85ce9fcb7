"""From what is to be watched to frames with their seconds: videos are streamed by the reader, images are one frame."""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import av
import numpy as np

from aurora.errors import AuroraError
from aurora.files import room_for
from aurora.images import read_image
from aurora.inference.live import LiveSource
from aurora.interfaces import Sampling, VideoReader
from aurora.media import media_type
from aurora.options import require_number

Timed = tuple[float, np.ndarray]
"""Seconds, and the frame [H, W, 3] uint8 that is shown then."""
Stamp = tuple[int, int, int]
"""Size, time of the last change in nanoseconds, and inode of a file: as long as they stay, so does what it holds."""
Source = str | os.PathLike[str] | Iterable[Timed] | Iterable[np.ndarray]
"""A file, its address, that of a stream, or frames: by themselves, one every 1 / fps seconds, or each with its
second."""


_FILES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".jpg", ".jpeg", ".png", ".webp", ".mpg", ".wmv")


class Progress(NamedTuple):
    """How far a source was read."""

    name: str
    frame: int  # from 1
    times: Sequence[float]  # seconds of all frames that will be read; empty where that is not known


Report = Callable[[Progress], None]


class UnreadableVisual(AuroraError):
    """A video or image that is missing, broken or holds no frame."""


class Frames:
    """The frames of one source, and what is known of it. Used with `with`, which gives the frames."""

    def __init__(self, source: Source, sampling: Sampling, reader: VideoReader, report: Report | None) -> None:
        self._address = source if isinstance(source, str) and "://" in source else None
        if self._address is not None and not _names_a_file(self._address):
            source = LiveSource(self._address, fps=sampling.fps or 1.0)
        if not _chooses_frames(source):
            sampling = Sampling(fps=sampling.fps or 1.0)
        self._source, self._reader, self._report, self._sampling = source, reader, report, sampling
        self.live: bool = getattr(source, "live", False)  # each frame is read as it comes
        self.path, self.name = None, str(getattr(source, "name", "frames"))
        if isinstance(source, (str, os.PathLike)):
            path = urlsplit(self._address).path if self._address else os.path.abspath(source)
            self.path, self.name = None if self._address else path, Path(path).name
        self.sampling: dict[str, Any] = {key: value for key, value in asdict(sampling).items() if value is not None}
        self.stamp: Stamp | None = None
        if self.path is not None:
            with suppress(OSError):  # one that is gone is named when it is read
                self.stamp = file_stamp(self.path)
        self._local = self.path  # the file, also where it was downloaded
        self._open = ExitStack()
        self._hash: Future[str] | None = None

    def __enter__(self) -> Iterator[Timed]:
        if self._address is not None and not self.live:
            with ExitStack() as whole:
                folder = Path(whole.enter_context(TemporaryDirectory()))
                self._local = download(self._address, folder)
                self._open = whole.pop_all()
        if self._local is not None:
            pool = ThreadPoolExecutor(1)
            self._open.callback(pool.shutdown)
            self._hash = pool.submit(file_hash, self._local)
        return shown(self._local or self._source, self._sampling, self._reader, self._report)

    def __exit__(self, *error: object) -> None:
        self._open.close()
        if hasattr(self._source, "close"):
            self._source.close()

    def sha256(self) -> str | None:
        """Of the file; None where there was none."""
        return None if self._hash is None else self._hash.result()

    def end(self, last: float | None) -> float:
        """The second at which the source ends, given when its last frame is shown: None where it had none."""
        if last is None or (self._local is not None and is_image(self._local)):
            return last or 0.0
        length = getattr(self._source, "lasting", None) if self._local is None else self._reader.duration(self._local)
        if length is not None:
            return min(length, self._sampling.stop or length)
        return last + (0.0 if self._sampling.fps is None or self.live else 1 / self._sampling.fps)


def _chooses_frames(source: Source) -> bool:
    """Whether frames of a source are chosen: of a file, or by whoever decoded one and says how long it lasts."""
    if isinstance(source, str) and "://" in source:
        return _names_a_file(source)
    return isinstance(source, (str, os.PathLike)) or hasattr(source, "lasting")


def _names_a_file(address: str) -> bool:
    """Whether an address is that of a whole file, by its ending; others are streams."""
    return Path(urlsplit(address).path).suffix.lower() in _FILES


def download(address: str, folder: Path) -> str:
    """The path of a file from the web or an object store, copied into a folder. UnreadableVisual where it cannot be
    had."""
    import fsspec

    target = folder / (Path(urlsplit(address).path).name or "video")
    try:
        with fsspec.open(address, "rb") as remote, room_for(target), target.open("wb") as local:
            shutil.copyfileobj(remote, local, 1 << 20)
    except Exception as error:  # every file system of fsspec has errors of its own, as for credentials
        reason = str(error.__cause__ or error)  # of a missing file fsspec says nothing but its address
        raise UnreadableVisual(f"{address} cannot be downloaded: {reason}") from error
    return str(target)


@contextmanager
def as_file(path: str | os.PathLike[str], *, fps: int) -> Iterator[Path]:
    """The path of a video; of a folder of numbered JPEGs a video file of so many a second, for as long as it is used.
    UnreadableVisual for a folder without any."""
    if not Path(path).is_dir():
        yield Path(path)
        return
    pictures = sorted((file for file in Path(path).glob("*.jpg") if file.stem.isdecimal()),
                      key=lambda file: int(file.stem))
    if not pictures:
        raise UnreadableVisual(f"{path} is a folder without numbered pictures, such as 00001.jpg")
    with TemporaryDirectory() as place:
        target = Path(place) / f"{Path(path).name}.mp4"
        try:
            _join(pictures, target, fps)
        except (AuroraError, OSError) as error:
            raise UnreadableVisual(f"the pictures in {path} cannot be read: {error}") from error
        yield target


def _join(pictures: Sequence[Path], target: Path, fps: int) -> None:
    """Writes JPEGs into a container as they are: nothing is encoded again."""
    height, width, _ = read_image(pictures[0]).shape
    tick, first = Fraction(1, fps), int(pictures[0].stem)
    with av.open(str(target), "w", format="mp4") as container:
        stream = container.add_mux_stream("mjpeg", rate=fps, width=width, height=height)
        stream.time_base = tick
        for picture in pictures:
            packet = av.Packet(picture.read_bytes())
            packet.stream, packet.time_base, packet.duration, packet.is_keyframe = stream, tick, 1, True
            packet.pts = packet.dts = int(picture.stem) - first
            container.mux(packet)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a still image. AuroraError unless it is an image or a video."""
    check_file(path)
    return not media_type(Path(path)).moving


def shown(source: Source, sampling: Sampling, reader: VideoReader, report: Report | None = None) -> Iterator[Timed]:
    """The frames of a source, never held together. UnreadableVisual for one that gives none."""
    number, name = 0, Path(source).name if isinstance(source, (str, os.PathLike)) else "frames"
    try:
        moving = isinstance(source, (str, os.PathLike)) and not is_image(source)
        times = reader.times(str(source), sampling) if report is not None and moving else []
        for one in _shown(source, sampling, reader):
            number += 1
            if report is not None:
                report(Progress(name, number, times))
            yield one
    except (AuroraError, OSError) as error:
        raise UnreadableVisual(str(error)) from error
    if number == 0:
        raise UnreadableVisual(f"{name} holds no frame at the sampled moments")


def _shown(source: Source, sampling: Sampling, reader: VideoReader) -> Iterator[Timed]:
    if isinstance(source, (str, os.PathLike)):
        if is_image(source):
            yield 0.0, read_image(Path(source))
        else:
            yield from reader.read(str(source), sampling)
        return
    before = -1.0
    for number, one in enumerate(source):
        seconds, frame = one if isinstance(one, tuple) else (number / (sampling.fps or 1.0), one)
        require_number(f"the second of frame {number}", seconds)
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
                and frame.size):
            raise AuroraError(f"frame {number} must be an array [H, W, 3] of uint8, not "
                              f"{getattr(frame, 'dtype', type(frame).__name__)} {getattr(frame, 'shape', '')}")
        if not math.isfinite(seconds):
            raise AuroraError(f"frame {number} is shown at second {seconds}, which is none")
        if seconds < max(before, 0.0):
            raise AuroraError(f"frame {number} is shown at second {seconds}, before the one in front of it ({before})")
        before = float(seconds)
        yield before, frame


def frames_of(sources: Sequence[str | Path], sampling: Sampling, reader: VideoReader) -> Iterator[np.ndarray]:
    """The frames [H, W, 3] uint8 of images and videos, one source after the other. UnreadableVisual."""
    for source in sources:
        for _, frame in shown(source, sampling, reader):
            yield frame


def check_sources(sources: Sequence[Source], sampling: Mapping[str, Any] = MappingProxyType({})) -> None:
    """AuroraError for what is not a source, and for options of sampling that a source does not have; UnreadableVisual
    for a file that is missing or empty."""
    chosen = [name for name in ("frames", "max_frames", "start", "stop") if sampling.get(name)]
    for source in sources:
        if isinstance(source, (str, os.PathLike)) and not (isinstance(source, str) and "://" in source):
            check_file(source)
        elif not isinstance(source, Iterable):
            raise AuroraError(f"what is watched must be a path or frames, not {type(source).__name__}")
        elif chosen and not _chooses_frames(source):
            raise AuroraError(f"{chosen[0]}={sampling[chosen[0]]} is for files: frames from Python, and those of a "
                              "stream, are watched as they come")


def check_file(path: str | os.PathLike[str]) -> None:
    """UnreadableVisual unless the path is a file with something in it."""
    path = Path(path)
    if not path.exists():
        raise UnreadableVisual(f"{path} does not exist")
    if not path.is_file():
        raise UnreadableVisual(f"{path} is a folder, not a video or image file" if path.is_dir()
                               else f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise UnreadableVisual(f"{path} is empty")


def file_stamp(path: str | os.PathLike[str]) -> Stamp:
    """Of a file, without reading it. OSError."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


def is_unchanged(path: str, stamp: Stamp | None, sha256: str | None) -> bool:
    """Whether a file is there and still the one that had this stamp, or has this hash; it is read only where the stamp
    does not say so, and once."""
    with suppress(OSError):
        now = file_stamp(path)
        return now == stamp or (sha256 is not None and _hash_once(path, now) == sha256)
    return False


@lru_cache(1024)
def _hash_once(path: str, stamp: Stamp) -> str:
    return file_hash(path)


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
