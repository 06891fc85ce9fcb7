"""What every registered video reader must show, on plain files. A frame's brightness tells its number."""

import ast
import io
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.registry import READER

STEP = 8


def readers():
    """Those that can be built here; the others with the reason why not."""
    for name in READER.known():
        try:
            READER.build({"name": name})
            yield name
        except AuroraError as error:
            yield pytest.param(name, marks=pytest.mark.skip(reason=str(error)))


every_reader = pytest.mark.parametrize("name", [*readers()])
SAMPLINGS = [Sampling(fps=1), Sampling(fps=4), Sampling(fps=10), Sampling(fps=29.97), Sampling(fps=0.1),
             Sampling(fps=10, max_frames=3), Sampling(frames=1), Sampling(frames=5), Sampling(frames=40),
             Sampling(fps=10, stop=0.05), Sampling(frames=3, stop=0.02), Sampling(fps=10, max_frames=2, stop=9)]


def video(frames=30, rate=10, container="mp4", codec="libx264", encoder=None, height=48, width=64):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(rate), options=encoder or {})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            grey = np.full((height, width, 3), number * STEP % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


CLIPS = {
    "b_frames": video(), "no_b_frames": video(encoder={"bf": "0"}), "one_gop": video(encoder={"g": "300"}),
    "ntsc": video(rate="30000/1001"), "one_frame": video(1), "vp9": video(container="webm", codec="libvpx-vp9"),
    "matroska": video(container="matroska"),
}


def read(name, source, sampling):
    return list(READER.build({"name": name}).read(source, sampling))


def numbers(frames):
    return [round(float(image.mean()) / STEP) for _, image in frames]


@every_reader
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("clip", CLIPS)
def test_what_is_read_are_the_moments_that_were_told(name, clip, sampling):
    times = READER.build({"name": name}).times(CLIPS[clip], sampling)
    assert [time for time, _ in read(name, CLIPS[clip], sampling)] == times


@every_reader
@pytest.mark.parametrize("clip", ["b_frames", "no_b_frames", "one_gop", "vp9", "matroska"])
def test_the_frame_shown_at_each_moment_is_read(name, clip):
    assert numbers(read(name, CLIPS[clip], Sampling(fps=10))) == list(range(30))
    assert numbers(read(name, CLIPS[clip], Sampling(fps=4))) == [int(k * 10 / 4) for k in range(12)]


@every_reader
def test_evenly_spread_frames_include_the_first_and_the_last(name):
    assert numbers(read(name, CLIPS["b_frames"], Sampling(frames=4))) == [0, 9, 19, 29]


@every_reader
def test_a_cap_spreads_frames_evenly(name):
    assert numbers(read(name, CLIPS["b_frames"], Sampling(fps=10, max_frames=2))) == [0, 29]


@every_reader
def test_a_range_shows_what_is_on_between_its_ends(name):
    assert numbers(read(name, CLIPS["b_frames"], Sampling(fps=10, start=1.2, stop=1.6))) == [12, 13, 14, 15]
    assert numbers(read(name, CLIPS["b_frames"], Sampling(fps=10, start=1.25, stop=1.5))) == [12, 13, 14]
    assert numbers(read(name, CLIPS["b_frames"], Sampling(frames=2, start=1.2, stop=1.6))) == [12, 15]


@every_reader
def test_the_moments_of_a_range_are_those_of_the_video(name):
    assert READER.build({"name": name}).times(CLIPS["b_frames"], Sampling(fps=2, start=1, stop=2.2)) == [1, 1.5, 2]


@every_reader
def test_a_range_behind_the_end_stops_there(name):
    assert numbers(read(name, CLIPS["b_frames"], Sampling(fps=10, start=2.7, stop=60))) == [27, 28, 29]


@every_reader
def test_a_range_that_begins_behind_the_end_is_refused(name):
    with pytest.raises(AuroraError, match=r"lasts 3.00 s; there is nothing from 3 s to 4 s"):
        read(name, CLIPS["b_frames"], Sampling(fps=1, start=3, stop=4))


@every_reader
def test_a_video_that_takes_too_long_is_refused(name):
    slow = READER.build({"name": name, "timeout_seconds": 1e-9})
    with pytest.raises(AuroraError, match=r"longer than 1e-09 s to read; a larger reader\.timeout_seconds"):
        list(slow.read(CLIPS["b_frames"], Sampling(fps=1)))


@every_reader
def test_the_time_that_a_caller_takes_is_not_counted(name):
    frames = READER.build({"name": name, "timeout_seconds": 1.0}).read(CLIPS["b_frames"], Sampling(fps=10))
    for number, _ in enumerate(frames):
        if number == 1:
            time.sleep(1.1)
    assert number == 29


@every_reader
@pytest.mark.parametrize("option", [{"timeout_seconds": 0}, {"timeout_seconds": -1.0}, {"threads": 0}, {"threads": 65}])
def test_an_option_without_sense_is_refused(name, option):
    with pytest.raises(AuroraError, match=f"reader '{name}': {next(iter(option))} is "):
        READER.build({"name": name, **option})


@every_reader
def test_frames_are_height_by_width_by_colour_in_bytes(name):
    (_, image), = read(name, CLIPS["one_frame"], Sampling(fps=1))
    assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)


@every_reader
def test_a_path_and_the_bytes_of_its_file_are_the_same(name, tmp_path):
    path = tmp_path / "a clip: odd name.mp4"
    path.write_bytes(CLIPS["b_frames"])
    assert numbers(read(name, str(path), Sampling(fps=3))) == numbers(read(name, CLIPS["b_frames"], Sampling(fps=3)))


@every_reader
@pytest.mark.parametrize("source", [
    b"", b"no video at all " * 100, CLIPS["b_frames"][:1000], CLIPS["b_frames"][:-100], "missing.mp4", ".",
    "http://localhost/x.mp4", "concat:a.mp4|b.mp4",
])
def test_what_holds_no_readable_video_is_one_clear_error(name, source):
    with pytest.raises(AuroraError) as error:
        read(name, source, Sampling(fps=1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [
    {}, {"fps": 1, "frames": 2}, {"fps": 0}, {"fps": -1}, {"frames": 0}, {"frames": 2, "max_frames": 1},
    {"fps": 1, "max_frames": 0}, {"fps": 1, "start": -1}, {"fps": 1, "start": 2, "stop": 2}, {"fps": 1, "stop": 0},
    {"fps": 1, "start": float("nan")},
], ids=str)
def test_a_sampling_that_says_nothing_or_two_things_is_refused(options):
    with pytest.raises(AuroraError, match="sampling"):
        Sampling(**options)


@every_reader
def test_the_pixels_are_those_of_the_default_reader(name):
    for (_, one), (_, other) in zip(read(name, CLIPS["ntsc"], Sampling(fps=10)),
                                    read("pyav", CLIPS["ntsc"], Sampling(fps=10)), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 3


MEMORY = """
import resource, sys
from aurora.interfaces import Sampling
from aurora.registry import READER
reader, peaks = READER.build({"name": sys.argv[1]}), []
for path in sys.argv[2:]:
    frames = 0
    for _, image in reader.read(path, Sampling(fps=25)):
        frames += 1
    peaks.append((frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
print(peaks)
"""


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """Paths of a short and a long video by their number of frames."""
    folder = tmp_path_factory.mktemp("lengths")
    for frames in (256, 4096):
        data = video(frames, 25, height=120, width=160, encoder={"preset": "ultrafast"})
        (folder / f"{frames}.mp4").write_bytes(data)
    return [str(folder / "256.mp4"), str(folder / "4096.mp4")]


@pytest.mark.slow
@every_reader
def test_a_video_of_4096_frames_is_streamed_in_the_memory_of_one_of_256(name, lengths):
    done = subprocess.run([sys.executable, "-c", MEMORY, name, *lengths], capture_output=True, text=True, check=True)
    (short, before), (long, after) = ast.literal_eval(done.stdout)
    assert (short, long) == (256, 4096)
    # All frames together would take 236 MB.
    assert after < before * 1.05
