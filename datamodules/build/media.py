"""Media made smaller before they are stored: pictures as JPEG, videos as H.264 with a few frames a second.

The same medium and options give the same bytes, with the same versions of the libraries.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg

from aurora.errors import AuroraError, BadSample, bad_sample
from aurora.images import ORIENTATION, PICTURE_ERRORS, READABLE, open_picture, pixels_of, resized, upright_shape
from aurora.interfaces import Sampling

from ..reader._deadline import Deadline
from ..reader._decode import frames_at, moments
from ..reader._file import TIMEOUT_SECONDS, scan
from ..shards.format import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ShardSample
from ..shards.writing import medium_bytes

_CLOCK = 90_000  # ticks per second, of which any usual rate is a divisor
_GROUP_SECONDS = 4


@dataclass(frozen=True)
class Transcode:
    """How media are stored."""

    short_side: int = 384  # of pictures and frames at most, in pixels
    quality: int = 90  # of JPEG
    fps: float = 2.0  # frames per second of video

    def __post_init__(self) -> None:
        if self.short_side < 16 or not 1 <= self.quality <= 100 or not 0 < self.fps <= 120:
            raise AuroraError(f"transcode: short side {self.short_side} must be 16 or more, quality {self.quality} in "
                              f"[1, 100], fps {self.fps} in (0, 120]")


def stored(sample: ShardSample, how: Transcode | None) -> ShardSample:
    """The sample with its media as a shard holds them. BadSample for one that no shard holds as it is, or is broken."""
    if how is None:
        kind, held = ("video", VIDEO_EXTENSIONS) if "video" in sample.record else ("image", IMAGE_EXTENSIONS)
        foreign = sorted({name.rpartition(".")[2] for name in sample.media} - {*held})
        if foreign:
            raise BadSample("format", f"{kind} {', '.join(foreign)} is not stored as it is; "
                                      "--transcode makes it jpg or mp4")
        return sample
    if "video" not in sample.record:
        return _renamed(sample, "image", "jpg", {name: small_picture(medium_bytes(medium), how)
                                                 for name, medium in sample.media.items()})
    (name, medium), = sample.media.items()
    span = sample.record.get("range")
    record = {key: value for key, value in sample.record.items() if key != "range"}
    video = small_video(medium, how, None if span is None else (span[0], span[1]))
    return _renamed(ShardSample(sample.key, record), "video", "mp4", {name: video})


def small_picture(raw: bytes, how: Transcode) -> bytes:
    """A JPEG, upright, whose short side is at most that of `how`; a JPEG that is one already is kept."""
    small: bytes = raw
    with bad_sample("image", PICTURE_ERRORS), open_picture(raw, formats=READABLE) as opened:
        scale = how.short_side / min(opened.size)
        if opened.format == "JPEG" and scale >= 1 and opened.getexif().get(ORIENTATION, 1) == 1:
            opened.load()  # a truncated one is found here
            return raw
        pixels = pixels_of(opened, raw, how.short_side if scale < 1 else 0)
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in upright_shape(opened))
            pixels = np.ascontiguousarray(resized(pixels, height, width).permute(1, 2, 0).numpy())
        small = simplejpeg.encode_jpeg(pixels, quality=how.quality, colorsubsampling="420")
    return small


def small_video(source: bytes | Path, how: Transcode, span: tuple[float, float] | None = None) -> bytes:
    """An mp4 of the frames shown at 0, 1/fps, 2/fps, … seconds of a video, or of a span of it, that lasts as long.

    Sampled at `fps`, or at a whole fraction of it, it gives the frames that the original gives at those moments.
    """
    video = str(source) if isinstance(source, Path) else source
    start, stop = span or (0.0, None)
    deadline = Deadline(TIMEOUT_SECONDS, video)
    with bad_sample("video"):
        packets = scan(video, deadline)
        times = moments(packets, Sampling(fps=how.fps, start=start, stop=stop), video)
        frames = frames_at(video, packets, times, threads=1, deadline=deadline, short_side=how.short_side)
        seconds = packets.within(start, stop, video).duration
        small = _mp4((pixels for _, pixels in deadline.timed(frames)), how, seconds)
    return small


def _mp4(frames: Iterable[np.ndarray], how: Transcode, seconds: float) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # one thread, no B-frames or lookahead, and bit-exact muxing: no schedule or version in the bytes
        container.flags |= av.container.Flags.bitexact.value
        stream = container.add_stream("libx264", rate=Fraction(how.fps).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        stream.options = {"crf": "23", "preset": "veryfast", "bf": "0", "tune": "zerolatency",
                          "g": str(max(1, round(_GROUP_SECONDS * how.fps)))}
        for number, pixels in enumerate(frames):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = round(number / how.fps * _CLOCK), Fraction(1, _CLOCK)
            for packet in stream.encode(frame):
                # The last frame is shown to the end of the video, the others to the next one.
                until = min((number + 1) / how.fps, seconds)
                packet.duration = max(1, round(until * _CLOCK) - frame.pts)
                container.mux(packet)
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _renamed(sample: ShardSample, field: str, extension: str, media: dict[str, bytes]) -> ShardSample:
    """The sample with other media, under their old names with another extension."""
    media = {name[:name.rfind(".") + 1] + extension: data for name, data in media.items()}
    names: str | list[str] = list(media) if len(media) > 1 else next(iter(media), "")
    return ShardSample(sample.key, {**sample.record, **({field: names} if media else {})}, media)
