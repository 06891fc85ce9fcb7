"""Which film a file holds, how its frames stand and what shows through them, when each is shown and how long."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aurora.errors import AuroraError
from aurora.inference.visuals import frames_of
from aurora.interfaces import Sampling
from aurora.registry import READER
from datamodules.build.media import Transcode, small_video
from datamodules.reader import _file
from datamodules.reader._file import measure, video_shape

FILES = Path(__file__).parent / "files"
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255)}
EVERY_READER = ["pyav", "decord", "torchcodec"]


def reader(name="pyav"):
    try:
        return READER.build({"name": name})
    except AuroraError as error:
        pytest.skip(str(error))


def corners(image):
    """The colours of the corners, top left first; - is another."""
    height, width = image.shape[:2]
    places = [(2, 2), (2, width - 3), (height - 3, 2), (height - 3, width - 3)]
    return "".join(next((name for name, colour in COLOURS.items()
                         if np.abs(image[place].astype(int) - colour).max() < 110), "-") for place in places)


def marked(number=0, width=64):
    """A grey picture with a red, a green and a blue corner."""
    image = np.full((48, width, 3), 120, np.uint8)
    image[:16, :16], image[:16, -16:], image[-16:, :16] = COLOURS["R"], COLOURS["G"], COLOURS["B"]
    return image


def muxed(form="mp4", codec="libx264", *, frames=10, matrix=None, aspect=None, early=0, encoder=None, options=None,
          pixels=marked, pix_fmt="yuv420p"):
    """A video of 10 frames a second that begins `early` frames before zero."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form, options=options or {}) as file:
        stream = file.add_stream(codec, rate=10, options=encoder or {})
        stream.height, stream.width, stream.pix_fmt = *pixels(0).shape[:2], pix_fmt
        if matrix:
            stream.set_display_matrix(matrix)
        if aspect:
            stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = aspect
        for number in range(frames):
            image = pixels(number)
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            for packet in [*stream.encode(frame), *(stream.encode() if number == frames - 1 else ())]:
                before = round(early / packet.time_base / 10)
                packet.pts, packet.dts = packet.pts - before, packet.dts - before
                file.mux(packet)
    return buffer.getvalue()


def matrix(a, b, c, d):
    return [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]


MATRICES = {(1, 0, 0, 1): "RGB-", (-1, 0, 0, 1): "GR-B", (1, 0, 0, -1): "B-RG", (-1, 0, 0, -1): "-BGR",
            (0, 1, 1, 0): "RBG-", (0, 1, -1, 0): "BR-G", (0, -1, 1, 0): "G-RB", (0, -1, -1, 0): "-GBR"}


@pytest.mark.parametrize("name", EVERY_READER)
@pytest.mark.parametrize("form", ["mp4", "mov"])
@pytest.mark.parametrize("entries", MATRICES)
def test_a_display_matrix_flips_and_turns(entries, form, name):
    data = muxed(form, frames=3, matrix=matrix(*entries))
    (_, image), = reader(name).read(data, Sampling(frames=1))
    assert corners(image) == MATRICES[entries] and image.shape[:2] == video_shape(data)


@pytest.mark.parametrize(("file", "right"), [("upright.mp4", "RGB-"), ("matrix_hflip.mp4", "GR-B"),
                                             ("matrix_transpose.mp4", "RBG-")])
@pytest.mark.parametrize("name", EVERY_READER)
def test_a_matrix_in_a_file_is_that_of_its_transcoded_copy_too(file, right, name):
    path = str(FILES / file)
    found = [image for _, image in reader(name).read(path, Sampling(fps=1))]
    small = small_video(Path(path), Transcode(64, fps=1))
    copies = [image for _, image in reader(name).read(small, Sampling(fps=1))]
    assert {corners(image) for image in [*found, *copies]} == {right} and len(found) == len(copies) == 10
    assert {image.shape[:2] for image in found} == {video_shape(path)}


@pytest.mark.parametrize(("aspect", "size"), [((2, 1), (48, 128)), ((1, 2), (96, 64)), ((4, 3), (48, 85)),
                                              ((1000, 1001), (48, 64))])
@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("name", EVERY_READER)
def test_pixels_are_made_square(aspect, size, form, name):
    data = muxed(form, aspect=Fraction(*aspect))
    images = [image for _, image in reader(name).read(data, Sampling(fps=2))]
    assert {image.shape[:2] for image in images} == {size} == {video_shape(data)}
    assert {corners(image) for image in images} == {"RGB-"}


def test_a_frame_that_is_stretched_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(_file, "MAX_PIXELS", 5000)
    assert len(list(reader().read(muxed(), Sampling(fps=1)))) == 1
    with pytest.raises(AuroraError, match="128×48 pixels, which are more than 5000"):
        list(reader().read(muxed(aspect=Fraction(2, 1)), Sampling(fps=1)))


def see_through(number):
    return np.zeros((48, 64, 4), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "codec", "pix_fmt"), [
    ("mov", "png", "rgba"), ("mov", "qtrle", "argb"), ("matroska", "ffv1", "bgra"), ("webm", "libvpx-vp9", "yuva420p"),
    ("webm", "libvpx", "yuva420p")])
@pytest.mark.parametrize("name", EVERY_READER)
def test_what_is_transparent_in_a_video_is_white(form, codec, pix_fmt, name):
    encoder = {"auto-alt-ref": "0"} if "vpx" in codec else {}
    data = muxed(form, codec, pixels=see_through, pix_fmt=pix_fmt, encoder=encoder)
    assert all(image.min() == 255 for _, image in reader(name).read(data, Sampling(fps=5)))


def with_cover(form, codec, *, first):
    """A film and a picture that nothing marks as a cover, which stands first or last."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as file:
        kinds = [codec, "libx264"] if first else ["libx264", codec]
        streams = [file.add_stream(kind, rate=10, options={}) for kind in kinds]
        for number, stream in enumerate(streams):
            film = (number == 1) == first
            stream.height, stream.width = (48, 64) if film else (32, 32)
            stream.pix_fmt = "yuv420p" if kinds[number] == "libx264" else "yuvj420p" if codec == "mjpeg" else "rgb24"
            if not film:
                stream.disposition = av.stream.Disposition.default
        for number, stream in enumerate(streams):
            film = (number == 1) == first
            for moment in range(20 if film else 1):
                image = marked() if film else np.zeros((32, 32, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = moment, Fraction(1, 10)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("form", "codec"), [("mp4", "mjpeg"), ("mp4", "png"), ("mp4", "libx264"),
                                             ("matroska", "mjpeg"), ("matroska", "libx264")])
@pytest.mark.parametrize("name", EVERY_READER)
def test_an_unmarked_cover_is_not_the_film(form, codec, first, name):
    data = with_cover(form, codec, first=first)
    images = [image for _, image in reader(name).read(data, Sampling(fps=10))]
    assert len(images) == 20 and {corners(image) for image in images} == {"RGB-"}
    assert video_shape(data) == (48, 64) and measure(data).frames == 20


@pytest.mark.parametrize(("form", "codec"), [("mpegts", "libx264"), ("matroska", "libx264"), ("matroska", "mpeg4"),
                                             ("webm", "libvpx-vp9")])
def test_a_video_that_begins_before_zero_is_read_from_its_beginning(make, form, codec):
    options = {"avoid_negative_ts": "disabled", **({"muxdelay": "0", "muxpreload": "0"} if form == "mpegts" else {})}
    data = muxed(form, codec, frames=30, early=12, pixels=make.grey, options=options, encoder={"b": "4M"})
    assert measure(data)[0::3] == (pytest.approx(-1.2), 30) and measure(data).duration == pytest.approx(3.0)
    for sampling in (Sampling(fps=10), Sampling(frames=30)):
        found = reader().read(data, sampling)
        assert [round(float(image.mean()) / make.STEP) for _, image in found] == list(range(30))


def test_the_last_frame_of_an_mp4_with_b_frames_lasts_as_the_track_says(make):
    pts = [*range(36), *range(236, 240)]
    data = make.video(40, pts=pts, encoder={"bf": "3", "g": "250"})
    assert measure(data).duration == pytest.approx(24.0)
    found = [round(float(image.mean()) / make.STEP) for _, image in reader().read(data, Sampling(fps=1))]
    assert found == [0, 10, 20, 30, *[3] * 20]  # a picture's brightness begins anew at 32


@pytest.mark.parametrize("form", ["mkv", "mp4"])
@pytest.mark.parametrize("name", EVERY_READER)
def test_a_last_frame_that_lasts_long_makes_no_file_truncated(form, name):
    path = str(FILES / f"long_last_frame.{form}")
    assert measure(path).duration == pytest.approx(10.0) and measure(path).frames == 20
    assert len(list(reader(name).read(path, Sampling(fps=1)))) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("form", "codec"), [("matroska", "libx264"), ("webm", "libvpx"), ("flv", "libx264"),
                                             ("asf", "wmv2"), ("avi", "mpeg4")])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_container_that_is_cut_is_truncated_and_a_whole_one_is_not(form, codec, share):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    data = muxed(form, codec, frames=30, pixels=lambda number: noise[number])
    assert measure(data).duration == pytest.approx(3.0)
    with pytest.raises(AuroraError, match="truncated"):
        measure(data[:int(len(data) * share)])


@pytest.mark.parametrize("stop", [1.0, 0.99, 0.96])
def test_a_range_of_an_avi_ends_before_the_frame_that_begins_at_its_stop(make, stop):
    data = make.video(30, container="avi", codec="mpeg4")
    for sampling in (Sampling(fps=25, stop=stop), Sampling(frames=99, stop=stop)):
        found = [round(float(image.mean()) / make.STEP) for _, image in reader().read(data, sampling)]
        assert sorted({*found}) == list(range(10))


def test_more_frames_than_there_are_gives_each_once(make):
    data = make.video(12, pts=[number + number ** 2 // 5 for number in range(12)], container="matroska")
    for frames in (12, 13, 100_000):
        found = reader().read(data, Sampling(frames=frames))
        assert [round(float(image.mean()) / make.STEP) for _, image in found] == list(range(12))
    assert len(reader().times(data, Sampling(frames=100_000, start=0.3, stop=0.9))) == len(
        [*reader().read(data, Sampling(frames=100_000, start=0.3, stop=0.9))]) < 6


def animated(form, durations=(200, 300, 500)):
    """An animation whose frames are transparent but for a column that tells their number."""
    images = [Image.new("RGBA", (32, 24)) for _ in durations]
    for number, image in enumerate(images):
        image.paste((255, 0, 0, 255), (8 * number, 0, 8 * number + 8, 24))
    buffer = io.BytesIO()
    images[0].save(buffer, form, save_all=True, append_images=images[1:], duration=list(durations), disposal=2,
                   lossless=True, **({"kmin": 0, "kmax": 1} if form == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("name", EVERY_READER)
def test_an_animated_picture_is_a_film_of_its_frames_at_their_times(form, name, tmp_path):
    data, path = animated(form), tmp_path / "still.jpg"
    path.write_bytes(data)
    assert measure(data) == (0.0, 0.5, 1.0, 3) and video_shape(data) == (24, 32)
    for source in (data, str(path)):
        found = [image for _, image in reader(name).read(source, Sampling(fps=10))]
        columns = [[at // 8 for at in range(4, 32, 8) if image[12, at, 1] < 99] for image in found]
        assert columns == [[0]] * 2 + [[1]] * 3 + [[2]] * 5
        assert all(image[12, 30].tolist() == [255, 255, 255] for image in found)
    assert len(list(frames_of([path], Sampling(fps=10), reader(name)))) == 10
    assert measure(small_video(data, Transcode(16, fps=10))).duration == pytest.approx(1.0)


@pytest.mark.parametrize(("file", "frames", "seconds"), [("animated.gif", 50, 5.0), ("animated.webp", 30, 3.0)])
def test_a_file_of_an_animation_has_all_its_frames(file, frames, seconds):
    path = str(FILES / file)
    assert (measure(path).frames, measure(path).duration) == (frames, pytest.approx(seconds))
    assert len({image.tobytes() for _, image in reader().read(path, Sampling(frames=frames))}) == frames


def test_a_frame_of_an_animation_without_a_duration_lasts_as_browsers_show_it():
    assert measure(animated("GIF", (0, 10, 20))).duration == pytest.approx(0.22)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_that_is_cut_is_an_error(form):
    data = animated(form, range(100, 900, 100))
    with pytest.raises(AuroraError, match="cannot be read as a video"):
        list(reader().read(data[:len(data) * 2 // 3], Sampling(fps=10)))
