"""decord, for plain files."""

from __future__ import annotations

import io
from collections.abc import Iterator

import decord
import numpy as np

from aurora.registry import READER

from ._other import BATCH, OtherReader, Unfit, check_starts


@READER.register
class DecordReader(OtherReader):
    """decord where its frames are right: H.264, VP8 and VP9 in plain mp4, webm and mkv. HEVC, AV1, MPEG-TS, files cut
    with an edit list and the like are read with PyAV. Damaged pictures go unnoticed.

    `timeout_seconds` is for all frames of one video together. `threads` decode one video; loader workers need one.
    """

    codecs = ("h264", "vp8", "vp9")

    def decoded(self, source: str | bytes, starts: np.ndarray, wanted: np.ndarray) -> Iterator[np.ndarray]:
        try:
            video = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else source,
                                       num_threads=self.threads)
            found = video.get_frame_timestamp(range(len(video)))[:, 0].astype(np.float64)
            check_starts(found - found[0] + starts[0], starts)
            for at in range(0, len(wanted), BATCH):
                yield video.get_batch(wanted[at:at + BATCH]).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise Unfit("it cannot decode it") from error
