"""Files of tensors: what is written is what the formats' own libraries read, and what is broken is named."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora.errors import AuroraError
from aurora.weights.io import (
    Output,
    open_tensors,
    plan_shards,
    read_metadata,
    write_pth,
    write_safetensors,
    write_shards,
)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "wide": random(70, 30).double(), "plain": random(40, 50), "half": random(3, 5).half(),
        "brain": random(2, 3, 4).bfloat16(), "count": torch.arange(7), "byte": torch.arange(9, dtype=torch.uint8),
        "flag": torch.tensor([True, False, True]), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4),
        "turned": random(6, 8).t(), "ünïcode": random(3), "wave": torch.complex(random(3), random(3)),
        "small": random(5).to(torch.float8_e4m3fn), "short": torch.arange(5, dtype=torch.int16),
        "positive": torch.arange(5).to(torch.uint32),
    }


def outputs(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Output]:
    return {name: Output.of(tensor, dtype) for name, tensor in tensors.items()}


def assert_same(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert given[name].dtype == tensor.dtype and given[name].shape == tensor.shape, name
        assert torch.equal(given[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name


# ---- what is written


def test_a_safetensors_file_is_the_one_that_its_library_writes(tensors, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours.safetensors", outputs(tensors), {"format": "pt"})
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert read_metadata(tmp_path / "ours.safetensors") == {"format": "pt"}


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_reads_the_pth_file_and_every_byte_has_its_checksum(tensors, tmp_path: Path, mmap: bool) -> None:
    write_pth(tmp_path / "ours.pth", outputs(tensors))
    assert_same(torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap), tensors)
    with zipfile.ZipFile(tmp_path / "ours.pth") as archive:
        assert archive.testzip() is None


def test_tensors_in_a_pth_file_are_aligned_for_mapping(tensors, tmp_path: Path) -> None:
    write_pth(tmp_path / "ours.pth", outputs(tensors))
    mapped = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=True)
    assert {tensor.data_ptr() % 64 for tensor in mapped.values() if tensor.numel()} == {0}


def test_our_own_reader_gives_back_what_was_written(tensors, tmp_path: Path) -> None:
    write_pth(tmp_path / "model.pth", outputs(tensors))
    write_safetensors(tmp_path / "model.safetensors", outputs(tensors), {})
    for name in ("model.pth", "model.safetensors"):
        assert_same(open_tensors(tmp_path / name), tensors)


def test_large_tensors_are_written_in_blocks_that_add_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("aurora.weights.io.BLOCK_BYTES", 100)
    tensors = {"flat": torch.randn(1000), "turned": torch.randn(31, 17).t(), "deep": torch.randn(1, 1, 333)}
    written = []
    write_safetensors(tmp_path / "model.safetensors", outputs(tensors, torch.bfloat16), {}, written.append)
    assert_same(load_file(tmp_path / "model.safetensors"), {name: each.bfloat16() for name, each in tensors.items()})
    assert max(written) <= 100 and sum(written) == 2 * sum(tensor.numel() for tensor in tensors.values())


def test_shards_hold_everything_once_and_none_is_too_large(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(10 + number) for number in range(9)}
    write_shards(tmp_path, outputs(tensors), {"format": "pt"}, 100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and set(index["weight_map"].values()) == {*files}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert_same(open_tensors(tmp_path), tensors)


def test_one_shard_is_a_plain_file_without_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": Output.of(torch.ones(3))}, {}, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tensor_larger_than_a_shard_has_one_for_itself() -> None:
    assert plan_shards({"a": 5, "b": 50, "c": 5, "d": 5}, 10) == [["a"], ["b"], ["c", "d"]]


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="big has values that float16 cannot hold; bfloat16 can"):
        write_safetensors(tmp_path / "m.safetensors", {"big": Output.of(torch.tensor([7e4]), torch.float16)}, {})


def test_a_safetensors_file_refuses_types_that_only_a_pth_file_holds(tmp_path: Path) -> None:
    outputs = {"a": Output.of(torch.ones(4, dtype=torch.complex128))}
    with pytest.raises(AuroraError, match=r"cannot hold a \(torch.complex128\); \.pth can"):
        write_safetensors(tmp_path / "m.safetensors", outputs, {})
    write_pth(tmp_path / "m.pth", outputs)
    assert_same(open_tensors(tmp_path / "m.pth"), {"a": torch.ones(4, dtype=torch.complex128)})


# ---- what is read


def test_files_of_torch_and_of_safetensors_are_read(tensors, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "model.pth")
    old = {name: tensor for name, tensor in tensors.items() if name not in ("small", "positive")}  # newer types
    torch.save(old, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    for name in ("model.pth", "old.pt", "model.safetensors"):
        assert_same(open_tensors(tmp_path / name), old if name == "old.pt" else tensors)


def test_reading_does_not_change_the_file(tensors, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", outputs(tensors), {})
    before = (tmp_path / "model.safetensors").read_bytes()
    open_tensors(tmp_path / "model.safetensors")["plain"].zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_named(tensors, tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    (write_pth if path.suffix == ".pth" else lambda *all: write_safetensors(*all, {}))(path, outputs(tensors))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(AuroraError, match=r"truncated|not a readable") as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    held = {"weight": torch.ones(3), "more": Bomb(tmp_path / "ran")}
    torch.save(held, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(AuroraError, match=r"more than tensors .* can run code"):
        open_tensors(tmp_path / "model.pth")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    with pytest.raises(AuroraError, match=r"model\.bin"):
        open_tensors(tmp_path / "model.bin")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_holds_more_than_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "step": 3}, tmp_path / "model.pth")
    with pytest.raises(AuroraError, match="does not map names to tensors, but state_dict, step"):
        open_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize(("member", "compression", "extra", "message"), [
    ("data.pkl", zipfile.ZIP_DEFLATED, b"", "data.pkl is compressed"),
    ("data/0", zipfile.ZIP_DEFLATED, b"", "data/0 is compressed"),
    ("data/0", zipfile.ZIP_BZIP2, b"", "data/0 is compressed"),
    ("data.pkl", zipfile.ZIP_STORED, b"." * 1000, "data.pkl has 1,.* bytes, and the names of tensors take at most 999"),
])
def test_an_archive_that_torch_does_not_write_is_refused(
    tensors, tmp_path: Path, monkeypatch, member: str, compression: int, extra: bytes, message: str
) -> None:
    monkeypatch.setattr("aurora.weights.io._PICKLE_BYTES", 999)
    torch.save({"a": torch.ones(1000)}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as given, zipfile.ZipFile(tmp_path / "other.pth", "w") as other:
        for info in given.infolist():
            wanted = info.filename.endswith(f"/{member}")
            other.writestr(info.filename, given.read(info) + (extra if wanted else b""),
                           compress_type=compression if wanted else zipfile.ZIP_STORED)
    with pytest.raises(AuroraError, match=message) as caught:
        open_tensors(tmp_path / "other.pth")
    assert str(tmp_path / "other.pth") in str(caught.value)


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of an archive whose members' bytes went through `change(name, data)`; None takes one away."""
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as other:
        for info in given.infolist():
            data = change(info.filename.partition("/")[2], given.read(info))
            if data is not None:
                other.writestr(info.filename, data)
    return target


def refused(path: Path) -> str:
    """The one line that is said of a file."""
    with pytest.raises(AuroraError) as caught:
        open_tensors(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 500
    assert "weights_only" not in said and "safe_globals" not in said
    return said


@pytest.mark.parametrize("size", [100, 3996, 5000, 0])
def test_tensors_that_reach_beyond_their_member_are_refused(tmp_path: Path, size: int) -> None:
    """torch maps them over whatever lies there."""
    torch.save({"a": torch.ones(1000), "b": torch.ones(1000)}, tmp_path / "model.pth")
    other = rewritten(tmp_path / "model.pth", tmp_path / "other.pth",
                      lambda name, data: (data * 2)[:size] if name == "data/0" else data)
    assert "its tensors take 8,000 bytes in 2 members" in refused(other)


def test_tensors_that_share_their_data_are_read(tmp_path: Path) -> None:
    whole = torch.randn(10, 4)
    given = {"whole": whole, "part": whole[2:5], "turned": whole.t(), "none": torch.empty(0, 3)}
    torch.save(given, tmp_path / "model.pth")
    assert_same(open_tensors(tmp_path / "model.pth"), given)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "model.pth")
    data = bytearray((tmp_path / "model.pth").read_bytes())
    place = 0
    while (place := data.find(b"PK\1\2", place)) >= 0:
        data[place + 8] |= 1
        place += 4
    (tmp_path / "model.pth").write_bytes(data)
    assert "is encrypted" in refused(tmp_path / "model.pth")


@pytest.mark.parametrize(("held", "message"), [
    ({0: torch.ones(2)}, "names a tensor 0"),
    ({"a\nb": torch.ones(2)}, r"a tensor of the name 'a\nb'"), ({"\x1b[2J": torch.ones(2)}, r"name '\x1b[2J'"),
    ({"a": torch.ones(2, device="meta")}, "a is a tensor of the kind meta"),
    ({"a": torch.eye(3).to_sparse()}, "a is a tensor of the kind torch.sparse_coo"),
    ([torch.ones(2)], "does not map names to tensors"),
    ({"a": [torch.ones(2)]}, "does not map names to tensors, but a"),
    ({"a": torch.ones(2), "module": torch.nn.Linear(2, 2)}, "more than tensors"),
    ({"a": torch.ones(2), "path": Path("x")}, "more than tensors"),
])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_not_named_tensors_is_refused(tmp_path: Path, held: object, message: str) -> None:
    torch.save(held, tmp_path / "model.pth")
    assert message in refused(tmp_path / "model.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    assert "a program of TorchScript; save its state_dict() instead" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("protocol", [0, 3, 4, 5])
def test_a_pickle_of_another_protocol_ends_in_an_error(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": [1.0] * 10, "b": "text"}, protocol=protocol))
    refused(tmp_path / "model.pth")


@pytest.mark.parametrize("opcodes", [
    b"\x80\x02" + b"]" * 1000 + b".", b"\x80\x02X" + struct.pack("<I", 2**31) + b"a" * 2000,
    b"\x80\x02c" + b"a" * 2000, b"\x80\x02" + b"(" * 2000, b"(" * 10,
])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_more_of_a_pickle_is_read_than_names_take(
    tmp_path: Path, monkeypatch, opcodes: bytes, zipped: bool
) -> None:
    monkeypatch.setattr("aurora.weights.io._PICKLE_BYTES", 999)
    torch.save({"a": torch.ones(2)}, tmp_path / "given.pth")
    (tmp_path / "model.pth").write_bytes(opcodes)
    if zipped:
        rewritten(tmp_path / "given.pth", tmp_path / "model.pth",
                  lambda name, data: opcodes if name == "data.pkl" else data)
    said = refused(tmp_path / "model.pth")
    assert len(opcodes) < 999 or "999" in said


@pytest.mark.parametrize(("start", "message"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>Not found</html>", "a page of the web"),
    (b"GGUF\3\0\0\0", "a GGUF file"), (b"\x1f\x8b\x08\0\0\0\0\0\0", "compressed by gzip"), (b"", "not a readable"),
])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "pytorch_model.bin"])
def test_a_file_of_another_kind_is_told(tmp_path: Path, start: bytes, message: str, name: str) -> None:
    (tmp_path / name).write_bytes(start)
    assert message in refused(tmp_path / name)


def test_bytes_that_changed_end_in_an_error_or_in_other_values(tmp_path: Path) -> None:
    """Every byte outside of the data, one after the other."""
    torch.save({"a": torch.ones(2)}, tmp_path / "given.pth")
    given = (tmp_path / "given.pth").read_bytes()
    for place in [*range(0, 64), *range(len(given) - 200, len(given))]:
        (tmp_path / "model.pth").write_bytes(given[:place] + bytes([given[place] ^ 0xFF]) + given[place + 1:])
        try:
            assert open_tensors(tmp_path / "model.pth").keys() == {"a"}, place
        except AuroraError as error:
            assert str(tmp_path / "model.pth") in str(error) and "\n" not in str(error), place


def test_weights_under_the_ending_of_the_other_format_are_told(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.pth")
    assert "it is a safetensors file: rename it to model.safetensors" in refused(tmp_path / "model.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert "it is a .pth file: rename it" in refused(tmp_path / "model.safetensors")


def header(path: Path, entries: object, data: bytes = b"\0" * 64) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "entries",
    [
        b"not json", b"[1, 2]",
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}},
        {"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}},
        {"a": {"dtype": "F32", "shape": "x"}},
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
         "b": {"dtype": "F32", "shape": [12], "data_offsets": [16, 64]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
         "b": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}},
        {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, "__metadata__": {"format": 3}},
        {"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 64]}},
        b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"a":{"dtype":"I8","shape":[64],"data_offsets":[0,64]}}',
        b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' + b"9" * 10_000 + b"}",
        b'{"\xff": 1}', b"",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, entries: object) -> None:
    assert "not a readable safetensors file" in refused(header(tmp_path / "model.safetensors", entries))


@pytest.mark.parametrize("length", [0x80, 0x3C, 0x4B50])
def test_the_length_of_a_header_is_not_taken_for_the_mark_of_another_kind(tmp_path: Path, length: int) -> None:
    said = refused(header(tmp_path / "model.safetensors", b'{"a": 1}'.ljust(length)))
    assert "invalid type" in said and " it is a" not in said


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 1000])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 500)
    assert f"its header would end at byte {length + 8:,} of 510" in refused(tmp_path / "model.safetensors")


def test_a_name_that_stands_twice_is_named(tmp_path: Path) -> None:
    entry = b'{"dtype":"F32","shape":[16],"data_offsets":[0,64]}'
    said = refused(header(tmp_path / "model.safetensors", b'{"b":' + entry + b',"b":' + entry + b"}"))
    assert "its header has 'b' twice" in said


@pytest.mark.parametrize("offsets", [[0, 32], [16, 48], [40, 72]])
def test_offsets_that_overlap_are_named(tmp_path: Path, offsets: list[int]) -> None:
    entries = {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
               "b": {"dtype": "F32", "shape": [8], "data_offsets": offsets}}
    assert "invalid offset for tensor" in refused(header(tmp_path / "model.safetensors", entries))


def test_an_index_may_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AuroraError, match=r"not a \.safetensors file beside it"):
        open_tensors(folder)


def test_a_shard_that_is_cut_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {f"t{number}": Output.of(torch.randn(100)) for number in range(3)}, {}, 400)
    cut = tmp_path / "model-00002-of-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(AuroraError, match=r"model-00002-of-00003\.safetensors is not .*; it may be truncated"):
        open_tensors(tmp_path)


def test_a_tensor_that_no_shard_holds_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {f"t{number}": Output.of(torch.randn(100)) for number in range(3)}, {}, 400)
    save_file({"other": torch.ones(2)}, tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(AuroraError, match=r"index\.json names t1, which none of its shards holds"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [("{", "cannot be read as JSON"), ("[]", "not hold a JSON object"), ('{"weight_map": {}}', "has no weight_map"),
     ('{"weight_map": ["a"]}', "has no weight_map"), ('{"weight_map": {"a": 1}}', "has no weight_map"),
     ("{}", "has no weight_map"),
     ('{"weight_map": {"a": "config.json"}}', r"'config\.json', which is not a \.safetensors file beside it"),
     ('{"weight_map": {"a": "/etc/passwd"}}', "not a .safetensors file beside it"),
     ('{"a":' * 100_000, "nested too deeply"),
     ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "not there: model-00001-of-00002")],
)
def test_a_broken_index_is_named(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(AuroraError, match=message):
        open_tensors(tmp_path)


def test_what_holds_no_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="there is no such file"):
        open_tensors(tmp_path / "nowhere.pth")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(AuroraError, match=r"ends in '\.gguf'"):
        open_tensors(tmp_path / "model.gguf")
    with pytest.raises(AuroraError, match=r"holds no model\.safetensors .* but model\.gguf$"):
        open_tensors(tmp_path)
    (tmp_path / "COMMITTED").write_text("{}")
    with pytest.raises(AuroraError, match="`aurora export` makes a model of a training checkpoint"):
        open_tensors(tmp_path)
