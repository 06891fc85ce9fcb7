"""Tars that another program wrote: what is read of them, and what is said of the rest."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.errors import AuroraError, BadSample
from datamodules.shards.index import load_index
from datamodules.shards.tar import ShardFiles
from datamodules.shards.writing import write_index

CASES = Path(__file__).parents[1] / "source" / "cases"


def tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def said(make):
    return {kind: json.dumps({"conversations": make.talk(1), **named}).encode()
            for kind, named in (("image", {"image": "jpg"}), ("text", {}))}


def index(folder, capsys):
    """The samples of a folder, and what `aurora shards index` says of it."""
    status = main(["shards", "index", str(folder)])
    out = capsys.readouterr()
    return (None if status else load_index(folder)), out.out + out.err


def test_what_webdataset_skips_is_skipped(make, said, tmp_path, capsys):
    tar(tmp_path / "x.tar", [("._a.json", b"\0\5"), ("a.json", said["image"]), ("a.JPG", make.picture(1)),
                             (".DS_Store", b"x"), ("sub/.DS_Store", b"x"), ("README", b"x"), ("__meta.x__", b"x")])
    found, text = index(tmp_path, capsys)
    assert len(found) == 1 and text == f"{tmp_path}: 1 samples in 1 shards\n"
    files = ShardFiles()
    key, raw = files.record(found, 0)
    assert (key, raw) == ("a", said["image"])
    assert files.media(found, 0, 0, f"{key}.jpg") == make.picture(1)


def test_members_of_other_kinds_are_counted_and_not_read(make, said, tmp_path, capsys):
    tar(tmp_path / "x.tar", [("a.json", said["image"]), ("a.jpg", make.picture(1)), ("a.cls", b"3"), ("a.pkl", b"x"),
                             ("b.json", said["text"]), ("b.cls", b"4"), ("b.json.gz", b"x")])
    found, text = index(tmp_path, capsys)
    assert len(found) == 2
    for line in ("x.tar: 2 members .cls are not read", "x.tar: 1 members .pkl", "x.tar: 1 members .json.gz"):
        assert line in text


@pytest.mark.parametrize("key", ["a b", "größe", "日本/x y", "a:b", "(1)", "./a"])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_key_may_hold_any_letters(make, said, tmp_path, capsys, key, format):
    tar(tmp_path / "x.tar", [(f"{key}.json", said["image"]), (f"{key}.jpg", make.picture(1))], format)
    found, _ = index(tmp_path, capsys)
    files = ShardFiles()
    read, _ = files.record(found, 0)
    assert files.media(found, 0, 0, f"{read}.jpg") == make.picture(1)


@pytest.mark.parametrize(("members", "why"), [
    ([("../bad.json", "text")], "key: '../bad' leads elsewhere"), ([("/bad.json", "text")], "key: '/bad'"),
    ([("x" * 91 + ".json", "text")], "more than 90 bytes"),
    ([("bad.json", "image"), ("bad.jpg", "picture"), ("bad.JPG", "picture")], "member: bad.jpg stands twice"),
    ([("bad.json", "text"), ("bad.json", "text")], "member: bad.json stands twice"),
    ([("bad.jpg", "picture"), ("bad.cls", "text")], "json: there is no json member"),
    ([("bad.json", "text"), ("bad.jpg", "picture")], "media: the record does not name jpg"),
    ([("bad.json", "empty")], "json: no conversations"), ([("bad.json", "list")], "json: '[]' is not an object"),
    ([("bad.json", "surrogate")], "surrogates not allowed"), ([("bad.json", "marker")], "markers: <image> stands"),
])
def test_a_sample_that_cannot_be_used_is_named_and_costs_no_other(make, said, tmp_path, capsys, members, why):
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    data = {**said, "picture": make.picture(1), "empty": b"{}", "list": b"[]",
            "surrogate": said["text"].replace(b"What", b"\\ud83d"),
            "marker": json.dumps({"conversations": talk}).encode()}
    tar(tmp_path / "x.tar", [("a.json", said["text"]), *((name, data[kind]) for name, kind in members),
                             ("z.json", said["text"])])
    found, text = index(tmp_path, capsys)
    assert [ShardFiles().record(found, sample)[0] for sample in range(len(found))] == ["a", "z"]
    assert f"x.tar: {members[0][0].partition('.json')[0].partition('.jpg')[0]}: " in text and why in text


def test_half_of_a_surrogate_pair_costs_one_sample(tmp_path, capsys):
    (tmp_path / "000000.tar").write_bytes((CASES / "unpaired_surrogate.tar").read_bytes())
    found, text = index(tmp_path, capsys)
    assert [ShardFiles().record(found, sample)[0] for sample in range(len(found))] == ["b"]
    assert "000000.tar: a: json: " in text


def test_a_folder_of_img2dataset_is_refused_with_its_reason(make, tmp_path, capsys):
    facts = json.dumps({"caption": "A ramp.", "url": "http://x/a.jpg", "key": "0", "status": "success"}).encode()
    tar(tmp_path / "00000.tar", [("0.jpg", make.picture(1)), ("0.json", facts), ("0.txt", b"A ramp.")])
    found, text = index(tmp_path, capsys)
    assert found is None
    assert "not one of the 1 samples" in text and "00000.tar, 0: no conversations" in text


def test_a_tar_that_is_none_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(AuroraError, match=r"x\.tar is not a whole tar"):
        write_index(tmp_path)


def test_members_that_were_exchanged_are_found(make, said, tmp_path):
    tar(tmp_path / "x.tar", [("a.json", said["image"]), ("a.jpg", make.picture(1))])
    found = write_index(tmp_path)
    tar(tmp_path / "x.tar", [("b.json", said["image"]), ("b.jpg", make.picture(1))])
    with pytest.raises(BadSample, match=r"x\.tar holds 'b\.jpg' where 'a\.jpg' should be"):
        ShardFiles().media(found, 0, 0, "a.jpg")


def test_a_folder_may_have_a_colon_in_its_name(make, said, tmp_path):
    (tmp_path / "data:v2").mkdir()
    tar(tmp_path / "data:v2" / "x.tar", [("a.json", said["text"])])
    write_index(tmp_path / "data:v2")
    assert len(load_index(tmp_path / "data:v2")) == 1
