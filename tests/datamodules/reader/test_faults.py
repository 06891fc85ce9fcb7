"""What goes wrong with videos: damage, size, time, leaks, decoders that cannot be trusted or are not there."""

import logging
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.registry import READER
from datamodules.reader import _file, _other

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture(scope="module")
def textured(make):
    """An mp4 whose pictures hold most of its bytes."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (4, 48, 64, 3), np.uint8)
    return make.video(24, picture=lambda number: pictures[number // 6], encoder={"g": "8"})


def pyav(**options):
    return READER.build({"name": "pyav", **options})


def test_damage_is_an_error_but_for_the_little_that_is_a_valid_stream_of_another_picture(textured):
    right = [image.astype(int) for _, image in pyav().read(textured, Sampling(fps=10))]
    begin, end = textured.index(b"mdat") + 700, textured.index(b"moov") - 8
    refused = wrong = 0
    for seed in range(40):
        broken = np.frombuffer(textured, np.uint8).copy()
        broken[np.random.default_rng(seed).integers(begin, end, 3)] ^= 85
        try:
            found = [image for _, image in pyav().read(broken.tobytes(), Sampling(fps=10))]
        except AuroraError:
            refused += 1
            continue
        wrong += max(np.abs(one - other).mean() for one, other in zip(right, found, strict=True)) > 8
    assert refused >= 32 and wrong <= 4


@pytest.mark.parametrize(("module", "limit", "value", "said"), [
    (_file, "MAX_PIXELS", 48 * 64 - 1, "64×48 pixels, which are more than 3071"),
    (_file, "MAX_FRAMES", 23, "more than 23 frames"), (_file, "MAX_SECONDS", 2.3, "lasts 2 s, which is more than 2"),
])
def test_a_video_above_a_limit_is_refused(textured, monkeypatch, module, limit, value, said):
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(AuroraError, match=said):
        list(pyav().read(textured, Sampling(fps=1)))


@pytest.mark.slow
def test_hundreds_of_videos_leave_nothing_behind(textured):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    cut = textured[:2000]
    for number in range(400):
        if number == 100:
            before, opened = resident(), len(os.listdir("/proc/self/fd"))
        frames = pyav(threads=1 + number % 2).read(textured, Sampling(fps=2))
        next(frames)  # the rest is left behind
        frames.close()
        with pytest.raises(AuroraError):
            list(pyav().read(cut, Sampling(fps=2)))
    assert len(os.listdir("/proc/self/fd")) == opened
    # What 300 videos would leave behind if each kept one of its frames: 3 MB; allocators need some room.
    assert resident() - before < 3e6


def test_a_title_that_is_no_utf8_does_not_matter(make):
    data = make.video(10, container="matroska")
    assert b"Lavf" in data
    odd = data.replace(b"Lavf", b"\xff\xe9t\xe9")
    assert len(list(pyav().read(odd, Sampling(fps=10)))) == 10


def test_a_file_is_measured_once_until_it_changes(textured, tmp_path, make, monkeypatch):
    scans = []
    monkeypatch.setattr(_file, "_scan", lambda *given, scan=_file._scan: scans.append(1) or scan(*given))
    path = tmp_path / "clip.mp4"
    path.write_bytes(textured)
    first = pyav().times(str(path), Sampling(fps=1))
    assert len(list(pyav().read(str(path), Sampling(fps=1)))) == len(first) and len(scans) == 1
    path.write_bytes(make.video(50))
    assert len(pyav().times(str(path), Sampling(fps=1))) == 5 and len(scans) == 2


def test_a_file_that_another_decoder_gets_wrong_is_read_with_pyav_and_that_is_said_once(make, caplog, monkeypatch):
    monkeypatch.setattr(_other, "_warned", set())
    data = make.video(20, container="mpegts")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            shown = READER.build({"name": "decord"}).read(data, Sampling(fps=10))
            assert [round(float(image.mean()) / make.STEP) for _, image in shown] == list(range(20))
    (record,) = caplog.records
    assert "reader decord: a video of" in record.getMessage() and "is read with pyav, because" in record.getMessage()


def test_times_that_do_not_agree_are_not_trusted():
    starts = np.array([0.0, 0.04, 0.08])
    _other.check_starts(starts + 5e-4, starts)
    for found in (starts + 0.04, starts[:2], np.array([0.0, 0.061, 0.08])):
        with pytest.raises(_other.Unfit, match="other times"):
            _other.check_starts(found, starts)


def test_a_reader_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(AuroraError, match=r"pip install 'auroralong\[torchcodec\]' and apt-get install ffmpeg"):
        READER.build({"name": "torchcodec"})


def test_broken_samples_of_every_kind_are_read_or_refused():
    soak = runpy.run_path(str(TOOLS / "soak_readers.py"))
    reader = pyav(timeout_seconds=30.0)
    for kind in soak["KINDS"]:
        whole = soak["original"](kind)
        assert soak["outcome"](kind, whole, reader) == "read"
        outcomes = {soak["outcome"](kind, soak["broken"](whole, np.random.default_rng(seed)), reader)
                    for seed in range(40)}
        assert any(outcome.startswith("refused") for outcome in outcomes)
