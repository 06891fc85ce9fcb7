import gc
import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from aurora.errors import AuroraError, BadSample
from aurora.images import MAX_PIXELS, decode_image, image_shape
from datamodules.build.media import Transcode, small_picture
from datamodules.shards.format import KINDS, ShardSample, parse_record
from datamodules.shards.index import load_index
from datamodules.shards.tar import ShardFiles
from datamodules.shards.writing import done_manifest, shard_path, write_index, write_shard
from tools.tiny_shards import write_shards


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# webdataset leaves its tars open
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_what_was_written(make, tmp_path):
    samples = make.mixed(5)
    write_shards(samples, tmp_path, samples_per_shard=3)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [entry["__key__"] for entry in read] == [sample.key for sample in samples]
    for entry, sample in zip(read, samples, strict=True):
        assert json.loads(entry["json"]) == sample.record
        assert {name: entry[name] for name in sample.media} == sample.media
    gc.collect()


def test_the_same_samples_give_the_same_bytes(make, tmp_path):
    for name in ("a", "b"):
        write_shards(make.mixed(5), tmp_path / name, samples_per_shard=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_writing_again_replaces_what_was_there(make, tmp_path):
    write_shards(make.mixed(6), tmp_path, samples_per_shard=2)
    write_shards(make.mixed(3), tmp_path, samples_per_shard=2)
    assert len(load_index(tmp_path)) == 3
    assert len(list(tmp_path.glob("*.tar"))) == 2


def test_shards_written_one_by_one_are_those_written_in_one_go(make, tmp_path):
    samples = make.mixed(6)
    write_shards(samples, tmp_path / "a", samples_per_shard=3)
    (tmp_path / "b").mkdir()
    for number in (1, 0):
        write_shard(samples[number * 3:number * 3 + 3], shard_path(tmp_path / "b", number))
    write_index(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_shard_ends_with_the_sample_that_passes_its_bytes(make, tmp_path):
    index = write_shards(make.mixed(8, ("image",)), tmp_path, shard_bytes=len(make.picture()) + 1)
    assert [shard["samples"] for shard in index.shards] == [2, 2, 2, 2]


def test_a_shard_is_done_only_with_its_manifest(make, tmp_path):
    tar = shard_path(tmp_path, 0)
    assert done_manifest(tar) is None
    written = write_shard(make.mixed(1), tar)
    assert done_manifest(tar) == written
    tar.with_name("000000.manifest.json").unlink()
    assert done_manifest(tar) is None


def test_the_index_measures_what_the_samples_hold(make, tmp_path):
    index = write_shards(make.mixed(4), tmp_path)
    assert [KINDS[kind] for kind in index.samples["kind"]] == ["text", "image", "images", "video"]
    assert [(int(row["height"]), int(row["width"])) for row in index.media] == [(40, 60), (40, 60), (30, 20), (48, 64)]
    clip = index.media_of(3)[0]
    assert (int(clip["frames"]), float(clip["first"])) == (7, 0.0)
    np.testing.assert_allclose([clip["last"], clip["duration"]], [0.6, 0.7], atol=1e-6)


def test_members_are_read_by_offset(make, tmp_path):
    samples = make.mixed(8)
    index = write_shards(samples, tmp_path, samples_per_shard=3)
    reading = ShardFiles()
    for number, sample in enumerate(samples):
        key, raw = reading.record(index, number)
        assert (key, json.loads(raw)) == (sample.key, sample.record)
        for place, (extension, data) in enumerate(sample.media.items()):
            assert reading.media(index, number, place, f"{key}.{extension}") == data


def test_a_dataset_of_text_alone_has_an_index(make, tmp_path):
    assert len(write_shards(make.mixed(3, ("text",)), tmp_path).media) == 0


@pytest.mark.parametrize("key", ["", "../evil", "/etc/x", "a b", "a/", "a.b", "ä", "x" * 91, "a/../b"])
def test_a_key_outside_the_format_is_refused(make, tmp_path, key):
    with pytest.raises(AuroraError, match="key"):
        write_shards([ShardSample(key, {"conversations": make.talk()})], tmp_path)


@pytest.mark.parametrize(("record", "media"), [
    ({}, {}), ({"conversations": []}, {}), ({"conversations": [{"from": "gpt", "value": "x"}]}, {}),
    ({"conversations": "x"}, {}), ({"conversations": [{"from": "human", "value": 1}]}, {}),
    ({"image": "jpg"}, {}), ({}, {"jpg": b"x"}), ({"image": "exe"}, {"exe": b"x"}), ({"video": "jpg"}, {"jpg": b""}),
    ({"image": "jpg", "video": "mp4"}, {"jpg": b"", "mp4": b""}), ({"image": []}, {}), ({"image": "../jpg"}, {}),
])
def test_a_sample_outside_the_format_is_refused(make, tmp_path, record, media):
    whole = record if "conversations" in record or not (record or media) else {"conversations": make.talk(), **record}
    with pytest.raises(AuroraError, match="sample 'k'"):
        write_shards([ShardSample("k", whole, media)], tmp_path)


def test_a_key_that_is_there_twice_is_refused(make, tmp_path):
    with pytest.raises(AuroraError, match="twice"):
        write_shards([make.sample(1, "text"), make.sample(1, "text")], tmp_path)


def test_a_failed_writer_leaves_no_index(make, tmp_path):
    write_shards(make.mixed(2), tmp_path)
    with pytest.raises(AuroraError):
        write_shards([make.sample(1, "text"), ShardSample("..", {})], tmp_path)
    with pytest.raises(AuroraError, match="index"):
        load_index(tmp_path)


def test_a_missing_shard_is_named(make, tmp_path):
    write_shards(make.mixed(4), tmp_path, samples_per_shard=2)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(AuroraError, match=r"000001\.tar is missing; write the shards again.*aurora shards index"):
        load_index(tmp_path)


def test_a_truncated_shard_is_named(make, tmp_path):
    write_shards(make.mixed(4), tmp_path, samples_per_shard=2)
    tar = shard_path(tmp_path, 1)
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(AuroraError, match=r"000001\.tar has \d+ bytes"):
        load_index(tmp_path)


def test_a_tar_that_the_index_does_not_know_is_named(make, tmp_path):
    write_shards(make.mixed(1), tmp_path)
    shard_path(tmp_path, 7).write_bytes(shard_path(tmp_path, 0).read_bytes())
    with pytest.raises(AuroraError, match=r"does not know: 000007\.tar"):
        load_index(tmp_path)


def test_indexing_again_mends_a_dataset_that_lost_a_shard(make, tmp_path):
    write_shards(make.mixed(4), tmp_path, samples_per_shard=2)
    shard_path(tmp_path, 0).unlink()
    assert len(write_index(tmp_path)) == 2


@pytest.mark.parametrize(("name", "raw"), [("000000.manifest.json", b"[]"), ("000000.manifest.json", b"{"),
                                           ("000000.index.npz", b""), ("000000.index.npz", b"PK\3\4")])
def test_indexing_again_mends_what_lies_beside_a_shard(make, tmp_path, name, raw):
    write_shards(make.mixed(2), tmp_path)
    before = files(tmp_path)
    (tmp_path / name).write_bytes(raw)
    write_index(tmp_path)
    assert files(tmp_path) == before


def test_a_flipped_byte_is_found_by_verifying(make, tmp_path):
    write_shards(make.mixed(2), tmp_path)
    assert make.wrong(tmp_path) == []
    tar = shard_path(tmp_path, 0)
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    found, = make.wrong(tmp_path)
    assert (found.shard, found.reason) == ("000000.tar", "sha256")


@pytest.mark.parametrize("folder", ["pipe:cat x", "s3://bucket/x", "http://host/x"])
def test_anything_but_a_folder_is_refused(folder):
    with pytest.raises(AuroraError, match="refused"):
        load_index(folder)


@pytest.mark.parametrize("name", ["a.pkl", "a.pyd", "a.json.gz", "../a.json", "a.0.exe", "noextension"])
def test_a_tar_with_a_member_outside_the_format_is_refused(tmp_path, name):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(AuroraError):
        write_index(tmp_path)


def test_tars_that_others_wrote_can_be_indexed(make, tmp_path):
    with webdataset.TarWriter(str(tmp_path / "other.tar")) as writer:
        writer.write({"__key__": "one", "jpg": make.picture(), "json": {"conversations": make.talk(), "image": "jpg"}})
    index = write_index(tmp_path)
    assert ShardFiles().media(index, 0, 0, "one.jpg") == make.picture()


def test_media_that_cannot_be_measured_are_listed_in_the_manifest(make, tmp_path):
    broken = ShardSample("b", {"conversations": make.talk(), "video": "mp4"}, {"mp4": make.video()[:500]})
    manifest = write_shard([make.sample(0, "video"), broken], shard_path(tmp_path, 0))
    assert [(entry["key"], entry["reason"]) for entry in manifest["bad"]] == [("b", "video")]


@pytest.mark.parametrize("raw", [b"", b"GIF89a", b"not an image"])
def test_what_is_no_image_is_a_bad_sample(raw):
    with pytest.raises(BadSample, match="image"):
        decode_image(raw)


def test_a_truncated_image_is_a_bad_sample(make):
    with pytest.raises(BadSample, match="image"):
        decode_image(make.picture()[:-200])


def jpeg(**options):
    buffer = io.BytesIO()
    Image.effect_noise((60, 40), 80).save(buffer, "JPEG", **options)
    return buffer.getvalue()


# what looks like the end may stand in the header, as that of a thumbnail does
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xd9"}], ids=str)
def test_a_jpeg_that_is_cut_off_is_found_without_decoding_it(options):
    raw = jpeg(**options)
    for cut in (1, 100, len(raw) // 2):
        with pytest.raises(BadSample, match=r"image.*cut off"):
            image_shape(raw[:-cut])


def test_bytes_behind_the_end_of_a_jpeg_do_not_matter():
    assert image_shape(jpeg() + b"more") == (40, 60)


def test_an_image_with_more_pixels_than_the_limit_is_not_decoded(make, monkeypatch):
    monkeypatch.setattr("aurora.images.MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(BadSample, match=r"limits.*60×40 pixels are more than 2399"):
        decode_image(make.picture())


@pytest.mark.slow
@pytest.mark.parametrize("side", [9_500, 13_500], ids=["where PIL warns", "where PIL refuses"])
@pytest.mark.parametrize("read", [decode_image, image_shape, lambda raw: small_picture(raw, Transcode())],
                         ids=["decoded", "measured", "made smaller"])
def test_our_own_limit_decides_on_pixels_and_nothing_is_warned_of(side, read):
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG", compress_level=1)
    with pytest.raises(BadSample, match=rf"limits.*{side}×{side} pixels are more than {MAX_PIXELS}"):
        read(buffer.getvalue())


def test_deeply_nested_json_is_a_bad_sample():
    with pytest.raises(BadSample, match="json"):
        parse_record(b"[" * 100_000)
