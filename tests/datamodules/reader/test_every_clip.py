"""Every kind of file that users have, in every reader: the frame by its timestamp, and exactly FFmpeg's own pixels."""

import gc
import io
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.registry import READER
from datamodules.reader import _decode
from datamodules.reader._decode import plan_read
from datamodules.reader._file import Deadline, measure, scan

HEIGHT, WIDTH, STEP, FRAMES = 48, 64, 8, 30
NOISE = np.random.default_rng(0).integers(0, 255, (HEIGHT + FRAMES, WIDTH + FRAMES, 3), dtype=np.uint8)
SAMPLINGS = {"sparse": Sampling(fps=1), "odd": Sampling(fps=3.3), "dense": Sampling(fps=10),
             "spread": Sampling(frames=4), "range": Sampling(fps=4, start=0.73, stop=1.9),
             "tail": Sampling(frames=3, start=1.21)}


def moving(number):
    return np.ascontiguousarray(NOISE[number:number + HEIGHT, number:number + WIDTH])


def grey(number):
    return np.full((HEIGHT, WIDTH, 3), number * STEP, np.uint8)


def clip(form="mp4", codec="libx264", picture=moving, pts=None, rotation=None, sound=False, frames=FRAMES, rate=10,
         options=None, **encoder):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        spoken = file.add_stream("aac", rate=16000) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = (pts[number] if pts else number), 1 / Fraction(rate)
            file.mux(stream.encode(frame))
            if spoken:
                heard = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
                heard.rate, heard.pts = 16000, number * 1600
                file.mux(spoken.encode(heard))
        file.mux(stream.encode())
        if spoken:
            file.mux(spoken.encode())
    return buffer.getvalue()


def copied(data, skip, form="mp4"):
    """The packets from the keyframe before frame `skip`, as `-c copy` leaves them: frames before it are not shown."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as given, av.open(buffer, "w", format=form) as file:
        source = given.streams.video[0]
        stream = file.add_stream_from_template(source)
        packets = [packet for packet in given.demux(source) if packet.size]
        start = next(p.pts for p in packets if round(p.pts * source.time_base * 10) == skip)
        begin = max(number for number, p in enumerate(packets) if p.is_keyframe and p.pts <= start)
        for packet in packets[begin:]:
            packet.stream = stream
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            file.mux(packet)
    return buffer.getvalue()


def edited(data, start):
    """The mp4 with its edit list moved to begin at `start` in the ticks of the media."""
    place = data.index(b"elst") + 16  # type, version and flags, count, duration
    return data[:place] + struct.pack(">i", start) + data[place + 4:]


X264 = {"g": "10", "preset": "ultrafast", "bf": "3"}
CLIPS = {
    "plain": clip(**X264),
    "pyramid": clip(g="16", bf="7"),
    "one group": clip(g="999"),
    "open groups": clip(**{"x264-params": "open-gop=1:keyint=7:bframes=3:scenecut=0"}),
    "no IDR but the first": clip(**{"x264-params": "intra-refresh=1:keyint=7"}),
    "interlaced": clip(**{"x264-params": "interlaced=1:keyint=10"}),
    "hevc": clip(codec="libx265", **{"x265-params": "keyint=8:bframes=3:log-level=none:pools=none"}),
    "vp8": clip("webm", "libvpx", g="10", **{"cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "vp9": clip("webm", "libvpx-vp9", g="10", **{"cpu-used": "8", "lag-in-frames": "8"}),
    "mpeg4": clip(codec="mpeg4", g="6", bf="2"),
    "transport stream": clip("mpegts", **X264),
    "matroska": clip("matroska", **X264),
    "fragments": clip(options={"movflags": "frag_keyframe+empty_moov"}, **X264),
    "late": clip("matroska", pts=[37 + number for number in range(FRAMES)], **X264),
    "variable rate": clip(pts=[number + number ** 2 // 40 for number in range(FRAMES)], **X264),
    "turned": clip(rotation=90, **X264),
    "sound": clip(sound=True, **X264),
    "copied": copied(clip(**X264), 13),
    "copied, pyramid": copied(clip(g="16", bf="7"), 5),
    "edit list": edited(clip(g="10", bf="0"), 5 * 1024),
    "copied to a transport stream": copied(clip(**X264), 13, "mpegts"),
}
if "libsvtav1" in av.codecs_available:
    CLIPS["av1"] = clip("matroska", "libsvtav1", preset="11", g="10", **{"svtav1-params": "lp=1"})
    # as root this encoder gives the thread that calls it real-time priority, which all that it starts would inherit
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
every_clip = pytest.mark.parametrize("clip", CLIPS)


def readers():
    """Those that can be built here; the others with the reason."""
    for name in READER.known():
        try:
            READER.build({"name": name})
            yield pytest.param(name)
        except AuroraError as error:
            yield pytest.param(name, marks=pytest.mark.skip(reason=str(error)))


every_reader = pytest.mark.parametrize("name", [*readers()])


def all_frames(data):
    """Seconds and pixels of all frames that are shown, decoded one after the other with nothing left out."""
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        found = [(float(frame.pts * stream.time_base), np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                 for frame in file.decode(stream)]
        first, tick = measure(data).first, float(stream.time_base)
    return [frame for frame in found if frame[0] > first - tick / 2], first + tick / 2


FULL = {name: all_frames(data) for name, data in CLIPS.items()}


def expected(name, times):
    frames, first = FULL[name]
    return [next(image for start, image in reversed(frames) if start <= first + time or start == frames[0][0])
            for time in times]


@every_reader
@every_clip
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_is_read_is_what_decoding_everything_shows(name, clip, sampling):
    reader = READER.build({"name": name})
    found = list(reader.read(CLIPS[clip], SAMPLINGS[sampling]))
    times = reader.times(CLIPS[clip], SAMPLINGS[sampling])
    assert [time for time, _ in found] == times
    # Other decoders convert colours a little differently; another frame is a quarter of the range away.
    allowed = 0 if name == "pyav" else 2.5
    for (_, image), right in zip(found, expected(clip, times), strict=True):
        assert image.shape == right.shape and np.abs(image.astype(int) - right).mean() <= allowed


def test_a_frame_is_freed_as_soon_as_it_is_read():
    def alive():
        return sum(type(one) is av.VideoFrame for one in gc.get_objects())

    gc.collect()
    gc.disable()  # else it would hide what is kept until the next collection
    try:
        before = alive()
        for _ in READER.build({"name": "pyav"}).read(CLIPS["plain"], SAMPLINGS["dense"]):
            assert alive() < before + 6
    finally:
        gc.enable()


@every_clip
def test_frames_decoded_in_parallel_are_the_same(clip):
    found = list(READER.build({"name": "pyav", "threads": 2}).read(CLIPS[clip], Sampling(fps=3.3)))
    for (_, image), right in zip(found, expected(clip, [time for time, _ in found]), strict=True):
        assert np.array_equal(image, right)


@every_clip
def test_a_file_that_is_searched_gives_the_same_frames(clip, monkeypatch):
    monkeypatch.setattr(_decode, "_FAR", 2)
    found = list(READER.build({"name": "pyav"}).read(CLIPS[clip], Sampling(fps=0.7)))
    for (_, image), right in zip(found, expected(clip, [time for time, _ in found]), strict=True):
        assert np.array_equal(image, right)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_shows_its_frames_in_their_order_at_its_rate(codec):
    data = clip("avi", codec, grey, bf="2", g="12", b="4M")
    found = READER.build({"name": "pyav"}).read(data, Sampling(fps=10))
    assert [round(float(image.mean()) / STEP) for _, image in found] == list(range(FRAMES))


def decoded_packets(data, sampling):
    packets = scan(data, Deadline(None, data))
    times = READER.build({"name": "pyav"}).times(data, sampling)
    wanted = plan_read(packets, times)
    return sum(map(len, wanted.runs)), wanted


def test_groups_of_pictures_that_nobody_wants_are_not_decoded():
    decoded, wanted = decoded_packets(CLIPS["plain"], Sampling(frames=2))
    assert decoded < FRAMES / 2 and len(wanted.runs) == 2


def test_a_range_is_decoded_from_the_keyframe_before_it():
    _, wanted = decoded_packets(CLIPS["plain"], Sampling(fps=1, start=2.5))
    assert [run.start for run in wanted.runs] == [20]


def test_groups_that_need_what_is_before_them_are_not_begun_with():
    _, wanted = decoded_packets(CLIPS["no IDR but the first"], Sampling(fps=1, start=2))
    assert [run.start for run in wanted.runs] == [0]


def test_only_frames_that_no_other_refers_to_are_left_out():
    assert decoded_packets(CLIPS["plain"], Sampling(fps=1))[1].whole is not None
    assert decoded_packets(CLIPS["hevc"], Sampling(fps=1))[1].whole is None
