"""What a media file is: its content decides, never its name."""

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from aurora.errors import AuroraError, BadSample
from aurora.images import PICTURE_ERRORS, READABLE, frame_count, open_picture

PICTURES = ("jpg", "png", "webp", "gif", "tiff", "bmp", "avif")
# Videos, and FFmpeg's demuxers for them. Playlists (hls, concat, dash) would open whatever they name, so only files
# that hold their frames are opened.
DEMUXERS = {"mp4": "mp4", "webm": "matroska", "mkv": "matroska", "avi": "avi", "flv": "flv", "wmv": "asf",
            "mpg": "mpeg", "ts": "mpegts", "ogv": "ogg"}
VIDEOS = tuple(DEMUXERS)
_HEAD = 4096
_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx", b"uuid")
_SYNC = 0x47  # the first byte of every packet of a transport stream


class MediaType(NamedTuple):
    """A kind of image or video, of which a shard holds only some."""

    extension: str  # "jpg", "gif", "mp4", "ts", …
    moving: bool  # a video, or an animated image


def media_type(medium: bytes | str | Path) -> MediaType:
    """The type of a file or of its bytes. AuroraError for what is neither an image nor a video, or is one without a
    reader."""
    name = f"a file of {len(medium)} bytes" if isinstance(medium, bytes) else repr(str(medium))
    try:
        with io.BytesIO(medium) if isinstance(medium, bytes) else open(medium, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise AuroraError(f"{name}: {error.strerror}") from error
    extension = next(_signs(head), "")
    if not extension:
        raise AuroraError(f"{name} begins with {head[:8]!r}: no known image or video" if head else f"{name} is empty")
    if extension == "heic":
        raise AuroraError(f"{name} is a HEIC image, for which there is no reader; convert it to JPEG or PNG")
    if extension == "raw" or (extension == "jpg" and _is_film(medium)):
        raise AuroraError(f"{name} is a raw stream of H.264, HEVC, MPEG or JPEG, which does not say when its frames "
                          "are shown; put it into a container: ffmpeg -framerate 25 -i FILE -c copy FILE.mp4")
    return MediaType(extension, extension not in PICTURES or _is_animated(medium, extension))


def _signs(head: bytes) -> Iterator[str]:
    """What the first bytes of a file may be, the likeliest first."""
    for sign, extension in ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n", "png"), (b"GIF8", "gif"), (b"II*\0", "tiff"),
                            (b"MM\0*", "tiff"), (b"FLV", "flv"), (b"\x30\x26\xb2\x75", "wmv"), (b"OggS", "ogv"),
                            (b"\0\0\x01\xba", "mpg")):
        if head.startswith(sign):
            yield extension
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":  # reserved; text may begin with these letters too
        yield "bmp"
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"AVI "):
        yield "webp" if head[8:12] == b"WEBP" else "avi"
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4], "big")
        brands = [head[8:12], *(head[at:at + 4] for at in range(16, min(size, _HEAD), 4))]
        if {b"avif", b"avis"} & {*brands}:
            yield "avif"
        if brands[0] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
            yield "heic"
    if head[4:8] in _BOXES:
        yield "mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):
        yield "webm" if b"webm" in head[:64] else "mkv"
    if any(_is_transport(head[at:], size) for size in (188, 192, 204) for at in range(size)):
        yield "ts"
    if head.startswith((b"\0\0\x01", b"\0\0\0\x01")):
        yield "raw"


def _is_transport(head: bytes, size: int) -> bool:
    """Whether packets of a transport stream begin here, at least three of them, each `size` bytes long."""
    # text may repeat the sign: what follows it in a packet differs
    return len(head) > 2 * size and {*head[::size][:8]} == {_SYNC} != {*head[1::size][:8]}


def _is_animated(medium: bytes | str | Path, extension: str) -> bool:
    if extension not in ("gif", "png", "webp", "avif"):
        return False
    # what is broken is found when it is read
    with suppress(*PICTURE_ERRORS, BadSample), open_picture(medium, formats=READABLE, animated=True) as image:
        return frame_count(image) > 1
    return False


def _is_film(medium: bytes | str | Path) -> bool:
    """Whether JPEGs follow each other, more than cameras store together, which say so."""
    raw = medium if isinstance(medium, bytes) else Path(medium).read_bytes()
    return raw.count(b"\xff\xd9\xff\xd8\xff") > 1 and b"MPF\0" not in raw
