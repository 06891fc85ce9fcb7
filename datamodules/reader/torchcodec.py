"""torchcodec, for plain files. It decodes with the FFmpeg of the system."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np

from aurora.errors import AuroraError
from aurora.options import PositiveFloat
from aurora.registry import READER

from ._file import TIMEOUT_SECONDS, Threads
from ._other import BATCH, OtherReader, Unfit, check_starts


@READER.register
class TorchcodecReader(OtherReader):
    """torchcodec where its timestamps are right, which they are not in files cut with an edit list, MPEG-TS and the
    like: those are read with PyAV. Damaged pictures go unnoticed. An extra: pip install 'auroralong[torchcodec]'.

    `timeout_seconds` is for all frames of one video together. `threads` decode one video; loader workers need one.
    """

    def __init__(self, *, timeout_seconds: PositiveFloat | None = TIMEOUT_SECONDS, threads: Threads = 1) -> None:
        super().__init__(timeout_seconds=timeout_seconds, threads=threads)
        try:
            # Here and not above: the part is listed, with its options, where the package is not installed.
            self._open = importlib.import_module("torchcodec.decoders").VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise AuroraError("reader 'torchcodec' needs a torchcodec that was built for this torch, and the libraries "
                              "of FFmpeg: pip install 'auroralong[torchcodec]' and apt-get install ffmpeg") from error

    def decoded(self, source: str | bytes, starts: np.ndarray, wanted: np.ndarray) -> Iterator[np.ndarray]:
        try:
            video = self._open(source, dimension_order="NHWC", num_ffmpeg_threads=self.threads)
            if len(video) != len(starts):
                raise Unfit("it finds another number of frames")
            for at in range(0, len(wanted), BATCH):
                batch = video.get_frames_at(wanted[at:at + BATCH].tolist())
                check_starts(batch.pts_seconds.numpy(), starts[wanted[at:at + BATCH]])
                yield batch.data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise Unfit("it cannot decode it") from error
