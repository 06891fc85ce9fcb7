import io
from collections.abc import Callable

import decord
import numpy as np

from aurora.registry import READER

from ._other import Batch, OtherReader


@READER.register
class DecordReader(OtherReader):
    """decord where its frames are right: H.264, VP8 and VP9 in plain mp4, webm and mkv. HEVC, AV1, MPEG-TS, files cut
    with an edit list and the like are read with PyAV. Damaged pictures go unnoticed.

    `timeout_seconds` is for all frames of one video together. `threads` decode one video; loader workers need one.
    """

    codecs = ("h264", "vp8", "vp9")
    errors = (decord.DECORDError, RuntimeError)

    def open(self, source: str | bytes, first: float) -> tuple[int, Callable[[list[int]], Batch]]:
        video = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else source,
                                   num_threads=self.threads)
        found = video.get_frame_timestamp(range(len(video)))[:, 0].astype(np.float64)
        return len(video), lambda numbers: (found[numbers] - found[0] + first, video.get_batch(numbers).asnumpy())
