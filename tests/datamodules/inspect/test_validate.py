import shutil

import numpy as np
import pytest

from aurora.errors import AuroraError
from datamodules.inspect.validate import check_shard, tasks
from datamodules.shards.format import ShardSample
from datamodules.shards.writing import shard_path, write_index
from tools.tiny_shards import write_shards

READER = {"name": "pyav"}


def findings(folder, decode=None):
    """(findings, decoded samples) of a folder."""
    planned, found = tasks(folder, decode=decode, reader=READER)
    done = [check_shard(task) for task in planned]
    return [*found, *(finding for one in done for finding in one.findings)], sum(one.decoded for one in done)


def reasons(folder, decode=None):
    return [finding.reason for finding in findings(folder, decode)[0]]


@pytest.fixture
def folder(make, tmp_path):
    """Eight samples of all kinds in two shards."""
    write_shards(make.mixed(8), tmp_path / "set", samples_per_shard=4)
    return tmp_path / "set"


def test_what_was_written_is_right(folder):
    assert findings(folder) == ([], 8)


def test_only_so_many_samples_of_a_shard_are_decoded(folder):
    assert findings(folder, decode=3) == ([], 6)
    assert findings(folder, decode=0) == ([], 0)


def test_no_cut_of_a_shard_is_silent(make, tmp_path):
    write_shards(make.mixed(2, ("text", "image")), tmp_path / "set")
    tar = shard_path(tmp_path / "set", 0)
    whole = tar.read_bytes()
    for cut in [*range(0, len(whole), 97), len(whole) - 1]:
        tar.write_bytes(whole[:cut])
        assert {"bytes", "sha256"} <= set(reasons(tmp_path / "set", decode=0))


def test_no_flipped_byte_of_a_shard_is_silent(make, tmp_path):
    write_shards(make.mixed(2, ("text", "image")), tmp_path / "set")
    tar = shard_path(tmp_path / "set", 0)
    whole = bytearray(tar.read_bytes())
    for place in range(0, len(whole), 53):
        whole[place] ^= 1
        tar.write_bytes(whole)
        assert reasons(tmp_path / "set", decode=0) == ["sha256"]
        whole[place] ^= 1


def test_a_flipped_byte_names_the_sample_that_it_broke(make, tmp_path):
    samples = [ShardSample(f"k{number}", {"id": f"origin {number}", "image": "png", "conversations": make.talk()},
                           {"png": make.picture(number, form="PNG")}) for number in range(3)]
    write_shards(samples, tmp_path / "set")
    tar = shard_path(tmp_path / "set", 0)
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT", data.index(b"k1.png")) + 6] ^= 255
    tar.write_bytes(data)
    found, _ = findings(tmp_path / "set")
    assert [(one.shard, one.key, one.reason, one.origin) for one in found] == [
        ("000000.tar", "", "sha256", ""), ("000000.tar", "k1", "image", "origin 1")]


def test_a_medium_that_was_bad_from_the_start_is_found(make, tmp_path):
    write_shards([ShardSample("k", {"video": "mp4", "conversations": make.talk()}, {"mp4": b"no video"})], tmp_path)
    assert reasons(tmp_path) == ["video"]


def test_a_missing_shard_and_a_strange_one_are_named(folder):
    shutil.copy(shard_path(folder, 0), folder / "mine.tar")
    shard_path(folder, 1).unlink()
    found, decoded = findings(folder)
    assert [(one.shard, one.reason) for one in found] == [("mine.tar", "unknown"), ("000001.tar", "missing")]
    assert decoded == 4


def test_a_folder_whose_arrays_are_of_another_shard_is_told(make, folder):
    media = np.load(folder / "index.media.npy")
    media["offset"][2] += 512
    np.save(folder / "index.media.npy", media)
    assert "index" in reasons(folder, decode=0)
    write_index(folder)
    assert reasons(folder, decode=0) == []


def test_a_sample_that_is_told_to_be_in_another_shard_is_found(folder):
    samples = np.load(folder / "index.samples.npy")
    samples["shard"][5] = 0
    np.save(folder / "index.samples.npy", samples)
    assert "index" in reasons(folder, decode=0)


def test_a_shard_without_its_manifest_is_told(folder):
    (folder / "000001.manifest.json").unlink()
    (folder / "000000.index.npz").write_bytes(b"")
    found, _ = findings(folder, decode=0)
    assert [(one.shard, one.reason) for one in found] == [("000000.tar", "index"), ("000001.tar", "manifest")]


def test_a_folder_without_index_is_a_finding_and_none_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    assert reasons(tmp_path / "empty") == ["index"]
    with pytest.raises(AuroraError, match="no dataset folder"):
        tasks(tmp_path / "none", decode=0, reader=READER)
