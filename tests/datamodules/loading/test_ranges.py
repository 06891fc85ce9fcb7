"""A sample may be a range of a video: its index row, its plan and its row then are those of the range."""

import json
from itertools import chain

import pytest

from aurora.errors import BadSample
from datamodules.inspect.validate import check_shard, tasks
from datamodules.shards.format import ShardSample, parse_record
from datamodules.shards.index import load_index
from tools.tiny_shards import write_shards


def record(**fields):
    return json.dumps({"conversations": [{"from": "human", "value": "?"}], **fields}).encode()


def test_a_record_tells_the_range_of_its_video():
    assert parse_record(record(video="mp4", range=[1, 2.5]))[3:] == (1.0, 2.5)
    assert parse_record(record(video="mp4"))[3:] == (0.0, None)


@pytest.mark.parametrize("fields", [
    {"image": "jpg", "range": [0, 1]}, {"range": [0, 1]},
    *({"video": "mp4", "range": value} for value in (
        [], [1], [1, 1], [2, 1], [-1, 2], [0, 1, 2], "0-1", ["0", "1"], [True, 2], [0, None], {"start": 0},
        [0, float("inf")], [float("nan"), 1])),
])
def test_a_range_that_makes_no_sense_is_a_bad_record(fields):
    with pytest.raises(BadSample, match="range"):
        parse_record(record(**fields))


@pytest.fixture
def ranges(make, tmp_path):
    """A dataset of ranges of one video of 3 s at 10 frames per second."""
    data = make.video(30, encoder={"g": "5"})
    given = [None, [0, 1], [0.5, 2.25], [1.0, 30.0], [2.91, 2.95]]
    write_shards([ShardSample(f"{number}", {"conversations": make.talk(number, "<video>"), "video": "mp4",
                                            **({"range": span} if span else {})}, {"mp4": data})
                  for number, span in enumerate(given)], tmp_path / "ranges")
    return tmp_path


def test_an_index_row_holds_the_range(ranges):
    media = load_index(ranges / "ranges").media
    assert media["duration"].tolist() == pytest.approx([3.0, 1.0, 1.75, 2.0, 0.04])
    assert media["frames"].tolist() == [30, 10, 18, 20, 1]


def test_as_many_frames_are_read_as_were_planned(make, ranges):
    data = make.module(ranges, {"ranges": 1}, fps=4.0, epochs=1)
    batches = list(chain.from_iterable(data.train_dataloader()))
    read = sum(frames.pixels.shape[0] for batch in batches for frames in batch.frames)
    assert sum(batch.samples for batch in batches) == 5 and read == 12 + 4 + 7 + 8 + 1


def test_ranges_are_decoded_when_shards_are_validated(ranges):
    todo, findings = tasks(ranges / "ranges", decode=5, reader={"name": "pyav"})
    checked = [check_shard(task) for task in todo]
    assert len(checked) == 1 and not findings and not any(one.findings for one in checked)
