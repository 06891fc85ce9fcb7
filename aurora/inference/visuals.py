"""From files to frames: videos are streamed by the reader, images are frames of their own."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from aurora.errors import AuroraError
from aurora.images import read_image
from aurora.interfaces import Sampling, VideoReader
from aurora.media import media_type


def is_image(path: str | Path) -> bool:
    """Whether a file is a still image. AuroraError unless it is an image or a video."""
    check_file(path)
    return not media_type(path).moving


class UnreadableVisual(AuroraError):
    """A video or image that is missing, broken or holds no frame."""


def frames_of(sources: Sequence[str | Path], sampling: Sampling, reader: VideoReader) -> Iterator[np.ndarray]:
    """The frames [H, W, 3] uint8 of images and videos, one source after the other, never held together.

    UnreadableVisual for a source that gives none.
    """
    for source in sources:
        try:
            number = 0
            shown = [read_image(source)] if is_image(source) else (f for _, f in reader.read(str(source), sampling))
            for frame in shown:
                yield frame
                number += 1
        except (AuroraError, OSError) as error:
            raise UnreadableVisual(str(error)) from error
        if number == 0:
            raise UnreadableVisual(f"{source} holds no frame at the sampled moments")


def check_file(path: str | Path) -> None:
    """UnreadableVisual unless the path is a file with something in it."""
    path = Path(path)
    if not path.exists():
        raise UnreadableVisual(f"{path} does not exist")
    if not path.is_file():
        raise UnreadableVisual(f"{path} is a folder, not a video or image file" if path.is_dir()
                               else f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise UnreadableVisual(f"{path} is empty")
