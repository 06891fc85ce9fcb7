"""torchcodec, for plain files. It decodes with the FFmpeg of the system."""

import importlib
from collections.abc import Callable

from aurora.errors import AuroraError
from aurora.options import PositiveFloat
from aurora.registry import READER

from ._file import TIMEOUT_SECONDS, Threads
from ._other import Batch, OtherReader


@READER.register
class TorchcodecReader(OtherReader):
    """torchcodec where its timestamps are right, which they are not in files cut with an edit list, MPEG-TS and the
    like: those are read with PyAV. Damaged pictures go unnoticed. An extra: pip install 'auroralong[torchcodec]'.

    `timeout_seconds` is for all frames of one video together. `threads` decode one video; loader workers need one.
    """

    errors = (RuntimeError, ValueError, IndexError)

    def __init__(self, *, timeout_seconds: PositiveFloat | None = TIMEOUT_SECONDS, threads: Threads = 1) -> None:
        super().__init__(timeout_seconds=timeout_seconds, threads=threads)
        try:
            # Here and not above: the part is listed, with its options, where the package is not installed.
            self._open = importlib.import_module("torchcodec.decoders").VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise AuroraError("reader 'torchcodec' needs a torchcodec that was built for this torch, and the libraries "
                              "of FFmpeg: pip install 'auroralong[torchcodec]' and apt-get install ffmpeg") from error

    def open(self, source: str | bytes, first: float) -> tuple[int, Callable[[list[int]], Batch]]:
        video = self._open(source, dimension_order="NHWC", num_ffmpeg_threads=self.threads)

        def read(numbers: list[int]) -> Batch:
            batch = video.get_frames_at(numbers)
            return batch.pts_seconds.numpy(), batch.data.numpy()

        return len(video), read
