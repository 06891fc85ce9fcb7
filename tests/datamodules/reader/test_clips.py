"""Files that plain readers get wrong: odd starts, edit lists, variable rates, rotation, damage."""

import struct

import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.registry import READER
from datamodules.reader._decode import capped, sample_counts, sample_times
from datamodules.reader._file import measure, video_shape


@pytest.fixture
def reader():
    return READER.build({"name": "pyav"})


def numbers(reader, make, source, sampling):
    return [round(float(image.mean()) / make.STEP) for _, image in reader.read(source, sampling)]


def edited(data, start):
    """The mp4 with its edit list moved to begin at `start` in the ticks of the media."""
    place = data.index(b"elst")
    entry = place + 4 + 4 + 4 + 4  # type, version and flags, count, duration
    return data[:entry] + struct.pack(">i", start) + data[entry + 4:]


def test_moments_are_counted_from_the_first_frame_of_a_transport_stream(make, reader):
    data = make.video(20, container="mpegts")
    assert measure(data).first > 0
    assert numbers(reader, make, data, Sampling(fps=10)) == list(range(20))


def test_moments_are_counted_from_a_late_first_frame(make, reader):
    data = make.video(10, pts=[30 + number for number in range(10)], container="matroska")
    assert measure(data).first == pytest.approx(3.0)
    assert numbers(reader, make, data, Sampling(fps=5)) == [0, 2, 4, 6, 8]


def test_a_variable_rate_shows_each_frame_as_long_as_it_lasts(make, reader):
    data = make.video(4, pts=[0, 1, 10, 12], container="matroska")
    assert numbers(reader, make, data, Sampling(fps=5)) == [0, 1, 1, 1, 1, 2, 3][:7]


def test_an_edit_list_hides_the_frames_before_it(make, reader):
    plain = make.video(20, encoder={"bf": "0"})
    data = edited(plain, 5 * 1024)
    shown = numbers(reader, make, data, Sampling(fps=10))
    assert shown[0] == 5 and shown == list(range(5, 5 + len(shown)))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_is_read_upright(make, reader, rotation):
    def corner(number):
        image = np.zeros((48, 64, 3), np.uint8)
        image[:24, :32] = 255
        return image
    data = make.video(3, rotation=rotation, picture=corner)
    (_, image), *_ = reader.read(data, Sampling(fps=1))
    turned = np.rot90(corner(0), rotation // 90)
    assert video_shape(data) == image.shape[:2] == turned.shape[:2]
    assert np.abs(image.astype(int) - turned).mean() < 5


def test_a_file_with_sound_alone_is_refused(make, reader):
    with pytest.raises(AuroraError, match="no video stream"):
        list(reader.read(make.sound(), Sampling(fps=1)))


def test_a_picture_is_no_video(make, reader):
    with pytest.raises(AuroraError, match="cannot be read as a video"):
        list(reader.read(make.picture(), Sampling(fps=1)))


def test_a_playlist_that_names_other_files_is_not_opened(make, reader, tmp_path):
    (tmp_path / "clip.ts").write_bytes(make.video(container="mpegts"))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(AuroraError, match="cannot be read"):
        list(reader.read(str(playlist), Sampling(fps=1)))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_a_video_cut_behind_its_header_is_refused(make, reader, tmp_path, share):
    noise = np.random.default_rng(0)
    data = make.video(40, picture=lambda _: noise.integers(0, 255, (48, 64, 3), np.uint8))
    moov, mdat = data.index(b"moov") - 4, data.index(b"mdat") - 4
    assert moov > mdat  # the header is last, so a cut file has none
    with pytest.raises(AuroraError, match="cannot be read as a video"):
        list(reader.read(data[:int(len(data) * share)], Sampling(fps=1)))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_webm_that_ends_before_its_header_says_is_refused(make, reader, share):
    noise = np.random.default_rng(0)
    data = make.video(60, container="webm", codec="libvpx-vp9", encoder={"cpu-used": "8", "deadline": "realtime"},
                      picture=lambda _: noise.integers(0, 255, (48, 64, 3), np.uint8))
    with pytest.raises(AuroraError, match="truncated"):
        list(reader.read(data[:int(len(data) * share)], Sampling(fps=1)))


def test_flipped_bytes_are_an_error_or_the_right_number_of_frames(make, reader):
    rng = np.random.default_rng(0)
    data = make.video(20, picture=lambda number: rng.integers(0, 255, (48, 64, 3), np.uint8))
    planned = len(reader.times(data, Sampling(fps=10)))
    outcomes = set()
    for seed in range(30):
        broken = np.frombuffer(data, np.uint8).copy()
        places = np.random.default_rng(seed).integers(100, len(data) - 2500, 1 + seed)
        broken[places] ^= 255
        try:
            outcomes.add(len(list(reader.read(broken.tobytes(), Sampling(fps=10)))) - planned)
        except AuroraError:
            outcomes.add("error")
    assert outcomes <= {0, "error"} and "error" in outcomes


@pytest.mark.parametrize(("sampling", "duration", "last", "times"), [
    (Sampling(fps=1), 3.0, 2.9, [0, 1, 2]), (Sampling(fps=1), 3.01, 2.9, [0, 1, 2, 3]),
    (Sampling(fps=1), 3.0000000001, 2.9, [0, 1, 2]), (Sampling(fps=2), 0.1, 0.0, [0]),
    (Sampling(fps=1, max_frames=2), 10.0, 9.5, [0, 9.5]), (Sampling(frames=3), 4.0, 3.0, [0, 1.5, 3]),
    (Sampling(frames=1), 4.0, 3.0, [0]), (Sampling(fps=0.5, max_frames=9), 4.0, 3.0, [0, 2]),
])
def test_the_moments_of_a_sampling(sampling, duration, last, times):
    assert sample_times(sampling, duration, np.linspace(0, last, 30)) == times


def test_the_number_of_moments_of_many_videos_is_that_of_each():
    durations = np.random.default_rng(0).uniform(0, 50, 300)
    for sampling in (Sampling(fps=3), Sampling(fps=29.97, max_frames=64), Sampling(frames=7)):
        counts = sample_counts(sampling, durations, np.full(300, 40))
        assert [len(sample_times(sampling, duration, np.arange(40))) for duration in durations] == counts.tolist()


@pytest.mark.parametrize("sampling", [Sampling(fps=2), Sampling(frames=9), Sampling(fps=2, max_frames=4)])
def test_a_capped_sampling_reads_no_more_than_the_cap(sampling):
    assert [len(sample_times(capped(sampling, cap), 10.0, np.arange(10))) for cap in (1, 3)] == [1, 3]


@pytest.mark.parametrize("cut", [1, 400, 5000])
def test_an_mp4_with_its_header_first_is_refused_when_its_end_is_missing(make, reader, tmp_path, cut):
    noise = np.random.default_rng(0)
    path = tmp_path / "fast.mp4"
    make.video(40, picture=lambda _: noise.integers(0, 255, (48, 64, 3), np.uint8), path=path,
               options={"movflags": "faststart"})
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and list(reader.read(data, Sampling(fps=1)))
    path.write_bytes(data[:-cut])
    for source in (data[:-cut], str(path)):
        with pytest.raises(AuroraError, match="truncated"):
            list(reader.read(source, Sampling(fps=1)))
