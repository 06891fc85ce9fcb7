"""Media made smaller: what stays the same, and what is refused."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aurora.errors import AuroraError, BadSample
from aurora.images import decode_image, image_shape
from aurora.interfaces import Sampling
from aurora.registry import READER
from datamodules.build.media import Transcode, small_picture, small_video, stored
from datamodules.reader._file import measure, video_shape
from datamodules.shards.format import ShardSample
from datamodules.source._records import with_media

SMALL = Transcode(short_side=32, fps=2)


def picture(form="JPEG", size=(120, 90), mode="RGB", **options):
    """A picture with a bright left half."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, :size[0] // 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def shown(raw, fps):
    """(moment, brightness) of the frames that sampling gives."""
    frames = READER.build({"name": "pyav"}).read(raw, Sampling(fps=fps))
    return [(time, round(float(frame.mean()))) for time, frame in frames]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_becomes_a_jpeg_with_the_short_side_that_was_asked_for(form):
    small = small_picture(picture(form), SMALL)
    assert small.startswith(b"\xff\xd8\xff") and image_shape(small) == (32, 43)
    pixels = decode_image(small)
    assert pixels[:, :18].min() > 200 and pixels[:, -18:].max() < 55


def test_a_small_jpeg_is_kept_byte_by_byte():
    raw = picture(size=(40, 32))
    assert small_picture(raw, SMALL) == raw


def test_a_small_picture_of_another_form_keeps_its_size():
    assert image_shape(small_picture(picture("PNG", (20, 10)), SMALL)) == (10, 20)


@pytest.mark.parametrize("size", [(120, 90), (20, 30)])
def test_a_picture_that_lies_on_its_side_stands_up(size):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = picture(size=size, exif=exif)
    small = small_picture(raw, SMALL)
    pixels, right = decode_image(small), decode_image(raw)
    assert (pixels.shape[0] > pixels.shape[1]) == (right.shape[0] > right.shape[1])
    # the bright half is above now
    assert pixels[0].mean() > 200 and pixels[-1].mean() < 55


@pytest.mark.parametrize("raw", [b"", b"GIF89a", picture()[:-300], picture(size=(30, 30))[:-100]])
def test_a_picture_that_is_broken_is_a_bad_sample(raw):
    with pytest.raises(BadSample, match="image"):
        small_picture(raw, SMALL)


@pytest.mark.parametrize("fps", [2.0, 1.0, 0.5])
def test_a_smaller_video_shows_the_same_at_the_same_moments(make, fps):
    raw = make.video(31, 10)
    small = small_video(raw, SMALL)
    left, right = shown(raw, fps), shown(small, fps)
    assert [time for time, _ in left] == [time for time, _ in right]
    assert all(abs(one - other) < make.STEP / 2 for (_, one), (_, other) in zip(left, right, strict=True))


def test_a_smaller_video_lasts_as_long_and_has_few_frames(make):
    raw = make.video(31, 10)
    small = small_video(raw, SMALL)
    clip = measure(small)
    assert clip.frames == 7 and video_shape(small) == (32, 42)
    assert clip.duration == pytest.approx(measure(raw).duration, abs=1e-3)


def test_a_range_of_a_video_becomes_the_whole_of_a_smaller_one(make):
    raw = make.video(31, 10)
    sample = ShardSample("k", {"video": "mp4", "range": [0.5, 1.8]}, {"mp4": raw})
    small = stored(sample, SMALL)
    assert small.record == {"video": "mp4"}
    assert measure(small.media["mp4"]).duration == pytest.approx(1.3, abs=1e-3)
    frames = [brightness for _, brightness in shown(small.media["mp4"], 2)]
    assert all(abs(one - number * make.STEP) < make.STEP / 2 for one, number in zip(frames, (5, 10, 15), strict=True))


def test_other_containers_become_mp4(make):
    raw = make.video(11, 10, container="avi", codec="mpeg4")
    small = stored(ShardSample("k", {"video": "avi"}, {"avi": raw}), SMALL)
    assert (small.record, list(small.media)) == ({"video": "mp4"}, ["mp4"])


def test_pictures_keep_their_order_and_their_numbers(make):
    media = {"0.png": picture("PNG"), "1.jpg": picture()}
    small = stored(ShardSample("k", {"image": list(media)}, media), SMALL)
    assert small.record["image"] == list(small.media) == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("extension", ["gif", "avi", "0.bmp"])
def test_what_no_shard_holds_is_a_bad_sample_unless_it_is_made_smaller(extension):
    with pytest.raises(BadSample, match="--transcode"):
        stored(ShardSample("k", {}, {extension: b"x"}), None)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animated_picture_is_a_video_that_only_transcoding_stores(form):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("black", "white")]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=500)
    sample = with_media("k", {}, [buffer.getvalue()])
    assert "image" not in sample.record
    with pytest.raises(BadSample, match="--transcode"):
        stored(sample, None)
    small = stored(sample, SMALL)
    assert small.record == {"video": "mp4"} and [brightness > 99 for _, brightness in shown(small.media["mp4"], 2)] == [
        False, True]


def test_a_video_that_is_broken_is_a_bad_sample(make):
    with pytest.raises(BadSample, match="video"):
        small_video(make.video(10)[:600], SMALL)


DIGESTS = """
import hashlib, sys
from pathlib import Path
from datamodules.build.media import Transcode, small_picture, small_video

for make, path in ((small_video, sys.argv[1]), (small_picture, sys.argv[2])):
    print(hashlib.sha256(make(Path(path).read_bytes(), Transcode(32))).hexdigest())
"""


def test_bytes_do_not_depend_on_the_process_or_what_its_memory_held(make, tmp_path):
    (tmp_path / "a.mp4").write_bytes(make.video(21, 10))
    (tmp_path / "a.jpg").write_bytes(picture())
    done = subprocess.run([sys.executable, "-c", DIGESTS, str(tmp_path / "a.mp4"), str(tmp_path / "a.jpg")],
                          cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True,
                          env={"MALLOC_PERTURB_": "165", "PATH": ""})
    small = small_video((tmp_path / "a.mp4").read_bytes(), Transcode(32)), small_picture(picture(), Transcode(32))
    assert done.stdout.split() == [hashlib.sha256(one).hexdigest() for one in small]


@pytest.mark.parametrize("options", [{"short_side": 8}, {"quality": 0}, {"fps": 0.0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(AuroraError, match="transcode"):
        Transcode(**options)
