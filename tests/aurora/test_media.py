"""What a media file is."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aurora.errors import AuroraError
from aurora.inference.visuals import is_image
from aurora.media import media_type


def picture(form: str, frames: int = 1) -> bytes:
    buffer = io.BytesIO()
    images = [Image.new("RGB", (40, 30), (90 * number, 0, 0)) for number in range(frames)]
    images[0].save(buffer, form, **({"save_all": True, "append_images": images[1:]} if frames > 1 else {}))
    return buffer.getvalue()


def video(form: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(12):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        file.mux(stream.encode())
    return buffer.getvalue()


KINDS = [*((picture(form), name, False) for form, name in (
    ("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tiff"), ("BMP", "bmp"))),
    *((picture(form, 3), name, True) for form, name in (("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"))),
    *((video(form, codec), name, True) for form, codec, name in (
        ("mp4", "libx264", "mp4"), ("mov", "mjpeg", "mp4"), ("matroska", "libx264", "mkv"), ("webm", "libvpx", "webm"),
        ("avi", "mpeg4", "avi"), ("flv", "libx264", "flv"), ("asf", "wmv2", "wmv"), ("mpegts", "libx264", "ts"),
        ("mpeg", "mpeg1video", "mpg"), ("ogg", "libvpx", "ogv")))]


@pytest.mark.parametrize(("raw", "extension", "moving"), KINDS, ids=[f"{kind[1]}-{kind[2]}" for kind in KINDS])
@pytest.mark.parametrize("name", ["a.jpg", "a.mp4", "a.h264", "a", "frame%03d.gif"])
def test_the_content_decides_whatever_a_file_is_called(
    raw: bytes, extension: str, moving: bool, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(raw)
    assert media_type(raw) == media_type(tmp_path / name) == (extension, moving)
    assert is_image(tmp_path / name) is not moving


def test_a_transport_stream_may_begin_in_the_middle_of_a_packet_and_have_longer_packets() -> None:
    data = video("mpegts", "libx264")
    packets = [data[at:at + 188] for at in range(0, len(data), 188)]
    assert media_type(data[100:]).extension == "ts"
    assert media_type(b"".join(b"\0\0\0\0" + packet for packet in packets)).extension == "ts"


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "is empty"), (b"<html></html>", "begins with b'<html></': no known image or video"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC image"), (b"G" * 6000, "no known image or video"),
    (b"BMW is a maker of cars, which", "no known image or video"),
    (video("h264", "libx264"), "raw stream .* put it into a container: ffmpeg"),
    (video("mjpeg", "mjpeg"), "raw stream"), (video("hevc", "libx265"), "raw stream"),
    (video("mpeg2video", "mpeg2video"), "raw stream"),
])
def test_what_there_is_no_reader_for_is_named(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(raw)
    for medium in (raw, tmp_path / "clip.mp4"):
        with pytest.raises(AuroraError, match=said):
            media_type(medium)
