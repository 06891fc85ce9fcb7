"""`aurora convert` as a user meets it: what is said, what is refused, and what is left behind when it stops."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.registry import BACKBONE, SLOTS
from aurora.weights.convert import convert
from aurora.weights.io import open_tensors

SIZES = {"rwkv6": {"hidden_size": 64, "layers": 2, "head_size": 16, "mix_rank": 8, "decay_rank": 8},
         "rwkv7": {"hidden_size": 64, "layers": 2, "head_size": 16},
         "mamba2": {"hidden_size": 48, "layers": 2, "head_size": 16, "state_size": 24}}


@pytest.fixture
def run(capsys):
    """(exit status, stdout, stderr) of a command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


def base(folder: Path, name: str = "rwkv6", **changes) -> Path:
    """A checkpoint of a part, with some tensors replaced; None takes one away."""
    torch.manual_seed(0)
    tensors = dict(BACKBONE.build({"name": name, **SIZES[name]}, vocab_size=40).state_dict()) | changes
    torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / f"{name}.pth")
    return folder / f"{name}.pth"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_command_writes_says_how_many_and_what_a_config_says(run, tmp_path: Path) -> None:
    status, out, err = run("convert", base(tmp_path), tmp_path / "fla", "--backbone", "rwkv6", "--to", "fla")
    assert (status, err) == (0, "") and "written" in out and "54" in out
    assert "hidden_size: 64, layers: 2, head_size: 16" in out
    assert names(tmp_path / "fla") == {"model.safetensors", "config.json"}


def test_the_report_lists_every_name(run, tmp_path: Path) -> None:
    source = base(tmp_path, **{"blocks.0.att.extra": torch.ones(1), "blocks.1.ln1.bias": None})
    status, _, err = run("convert", source, tmp_path / "out.pth", "--backbone", "rwkv6", "--allow-missing",
                         "--allow-unexpected", "--report", tmp_path / "r.json")
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["missing"], report["unexpected"]) == (["blocks.1.ln1.bias"], ["blocks.0.att.extra"])
    written = open_tensors(tmp_path / "out.pth")
    assert {each["target"] for each in report["mapped"]} == written.keys()
    assert report["bytes"] == sum(tensor.nbytes for tensor in written.values())


@pytest.mark.parametrize(("change", "message", "flag"), [
    ({"blocks.1.ln1.bias": None}, "lacks 1 tensor(s): blocks.1.ln1.bias", "--allow-missing"),
    ({"blocks.1.what": torch.ones(2)}, "holds 1 unexpected tensor(s): blocks.1.what", "--allow-unexpected"),
])
def test_a_gap_stops_the_conversion_unless_it_is_allowed(run, tmp_path: Path, change, message, flag) -> None:
    source = base(tmp_path, **change)
    for layout in ("authors", "fla"):
        target = tmp_path / f"{layout}.safetensors"
        command = ("convert", source, target, "--backbone", "rwkv6", "--to", layout)
        status, _, err = run(*command)
        assert (status, err.count("\n")) == (2, 1) and message in err and flag in err and not target.exists()
        assert run(*command, flag)[0] == 0


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", torch.bfloat16), ("float16", torch.float16),
                                             ("float32", torch.float32)])
def test_a_dtype_is_that_of_every_tensor(run, tmp_path: Path, dtype: str, kept: torch.dtype) -> None:
    source = base(tmp_path)
    assert run("convert", source, tmp_path / "fla", "--backbone", "rwkv6", "--to", "fla", "--dtype", dtype)[0] == 0
    given, written = open_tensors(source), open_tensors(tmp_path / "fla")
    assert {tensor.dtype for tensor in written.values()} == {kept}
    assert torch.equal(written["model.embeddings.weight"], given["emb.weight"].to(kept))
    assert json.loads((tmp_path / "fla" / "config.json").read_text())["dtype"] == dtype


def test_the_part_of_a_model_folder_is_taken(run, model, model_folder, tmp_path: Path) -> None:
    assert run("convert", model_folder, tmp_path / "lm.pth", "--backbone", "rwkv6")[0] == 0
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(open_tensors(tmp_path / "lm.pth")[name], tensor), name
    assert run("convert", model_folder, tmp_path / "tower", "--vision", "siglip")[0] == 0
    for name, tensor in model.vision.base_state_dict().items():
        assert torch.equal(open_tensors(tmp_path / "tower")[name], tensor), name
    wanted = model.vision.base_config()
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    assert {key: config[key] for key in wanted} == wanted


def test_the_part_of_a_model_folder_must_be_the_one_that_is_asked_for(run, model_folder, tmp_path: Path) -> None:
    err = run("convert", model_folder, tmp_path / "x.pth", "--backbone", "mamba2")[2]
    assert "is a model with backbone 'rwkv6', not 'mamba2'" in err


def test_a_part_of_another_package_brings_its_layouts(tmp_path: Path) -> None:
    family = BACKBONE.get("rwkv6").layouts
    mine = type("Mine", (BACKBONE.get("rwkv6"),), {"layouts": dataclasses.replace(family, part="mine")})
    BACKBONE.add("mine", mine)
    try:
        report = convert(base(tmp_path), tmp_path / "fla", slot="backbone", part="mine", to="fla")
    finally:
        del BACKBONE._classes["mine"]
    assert report.part == "backbone mine" and "model.embeddings.weight" in open_tensors(tmp_path / "fla")


# ---- other families, broken files


@pytest.mark.parametrize(("name", "asked", "like"), [
    ("rwkv7", "rwkv6", "RWKV-7 (x070)"), ("rwkv6", "rwkv7", "RWKV-6 (x060)"), ("mamba2", "rwkv6", "Mamba-2"),
    ("rwkv6", "mamba2", "RWKV-6 (x060)"),
])
def test_a_checkpoint_of_another_family_is_named(run, tmp_path: Path, name: str, asked: str, like: str) -> None:
    status, _, err = run("convert", base(tmp_path, name), tmp_path / "x.pth", "--backbone", asked)
    assert (status, err.count("\n")) == (2, 1)
    assert f"holds no {asked}: it looks like {like}" in err and "is read from" in err


RWKV5 = [f"blocks.{layer}.{name}" for layer in range(2) for name in (
    "ln1.weight", "ln1.bias", "att.time_mix_k", "att.time_mix_v", "att.time_mix_r", "att.time_mix_g", "att.time_decay",
    "att.time_faaaa", "att.key.weight", "att.gate.weight", "att.ln_x.weight", "ffn.time_mix_k", "ffn.key.weight")]
RWKV5_HF = [f"rwkv.blocks.0.{name}" for name in (
    "attention.time_mix_key", "attention.time_mix_gate", "attention.time_faaaa", "attention.gate.weight",
    "attention.ln_x.weight", "feed_forward.time_mix_key")]
RWKV4_HF = ["rwkv.blocks.0.attention.time_first", "rwkv.blocks.0.attention.time_mix_key", "head.weight"]
MAMBA1 = ["backbone.embeddings.weight", *(f"backbone.layers.0.mixer.{name}" for name in (
    "A_log", "D", "conv1d.weight", "dt_proj.weight", "in_proj.weight", "x_proj.weight"))]
CLIP = ["vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.class_embedding",
        "vision_model.pre_layrnorm.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"]


@pytest.mark.parametrize(("names", "slot", "asked", "like"), [
    (RWKV5, "backbone", "rwkv6", "RWKV-5 (x052)"), (RWKV5, "backbone", "rwkv7", "RWKV-5 (x052)"),
    (RWKV5_HF, "backbone", "rwkv6", "RWKV-5 in the layout of"), (RWKV4_HF, "backbone", "rwkv6", "RWKV-4"),
    (MAMBA1, "backbone", "mamba2", "Mamba-1"), (CLIP, "vision", "siglip", "CLIP"),
    (["emb.weight", *RWKV5], "backbone", "gla", "RWKV-5 (x052)"),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_close_relative_is_refused_in_one_sentence(
    run, tmp_path: Path, names: list[str], slot: str, asked: str, like: str, prefix: str
) -> None:
    """Names that two families share must not count as those of the one that is asked for."""
    save_file({prefix + name: torch.ones(2, 2) for name in names}, tmp_path / "other.safetensors")
    sizes = {**SIZES, "gla": {"hidden_size": 64, "layers": 2, "head_size": 16}, "siglip": {"layers": 2}}[asked]
    part = SLOTS[slot].build({"name": asked, **sizes}, vocab_size=40)
    with pytest.raises(AuroraError, match=re.escape(like)) as caught:
        part.load_base(str(tmp_path / "other.safetensors"))
    assert str(tmp_path / "other.safetensors") in str(caught.value) and "read" in str(caught.value)
    if asked != "gla":
        err = run("convert", tmp_path / "other.safetensors", tmp_path / "x.pth", f"--{slot}", asked)[2]
        assert err.count("\n") == 1 and f"holds no {asked}: it looks like {like}" in err and "is read from" in err


def test_values_that_are_not_finite_are_not_converted(run, tmp_path: Path) -> None:
    source = base(tmp_path, **{"blocks.1.ln1.bias": torch.full((64,), float("nan"))})
    status, _, err = run("convert", source, tmp_path / "x.pth", "--backbone", "rwkv6")
    assert (status, err.count("\n")) == (2, 1) and not (tmp_path / "x.pth").exists()
    assert f"{source}: blocks.1.ln1.bias holds values that are not finite" in err


def test_sizes_of_another_model_are_said(tmp_path: Path) -> None:
    part = BACKBONE.build({"name": "rwkv6", **SIZES["rwkv6"], "hidden_size": 32}, vocab_size=40)
    with pytest.raises(AuroraError, match=r"\(40, 64\) instead of \(40, 32\).* it has vocab_size 40, hidden_size 64,"):
        part.load_base(str(base(tmp_path)))


@pytest.mark.parametrize(("key", "like"), [
    ("backbone.layers.0.mixer.x_proj.weight", "Mamba-1"),
    ("model.layers.0.self_attn.q_proj.weight", "a transformer such as Llama"),
    ("blocks.0.att.time_mix_k", "RWKV-4"),
    ("blocks.0.att.gate.weight", "RWKV-5"),
    ("base_model.model.layers.0.q.lora_A.weight", "a LoRA adapter"),
    ("h.0.attn.c_attn.weight", "GPT-2"),
    ("vision_model.encoder.layers.0.self_attn.k_proj.bias", "SigLIP or CLIP"),
    ("something.else", "holds names such as something.else"),
])
def test_other_models_are_told_apart(run, tmp_path: Path, key: str, like: str) -> None:
    save_file({key: torch.ones(2)}, tmp_path / "model.safetensors")
    assert like in run("convert", tmp_path / "model.safetensors", tmp_path / "x.pth", "--backbone", "rwkv6")[2]


def test_base_weights_of_another_family_are_named(tmp_path: Path) -> None:
    part = BACKBONE.build({"name": "rwkv6", **SIZES["rwkv6"]}, vocab_size=40)
    with pytest.raises(ValueError, match=r"looks like RWKV-7 \(x070\)"):
        part.load_base(str(base(tmp_path, "rwkv7")))


@pytest.mark.parametrize("layout", ["fla", "hf"])
def test_base_weights_are_read_in_every_layout(tmp_path: Path, layout: str) -> None:
    part = BACKBONE.build({"name": "rwkv6", **SIZES["rwkv6"]}, vocab_size=40)
    source = base(tmp_path)
    convert(source, tmp_path / layout, slot="backbone", part="rwkv6", to=layout)
    part.load_base(str(tmp_path / layout))
    for name, tensor in open_tensors(source).items():
        assert torch.equal(part.state_dict()[name], tensor), name


@pytest.mark.parametrize(("key", "shape"), [
    ("blocks.1.att.key.weight", (64, 63)), ("emb.weight", (40, 60)), ("emb.weight", (40,)),
    ("blocks.0.att.time_maa_w2", (5, 8, 60)), ("blocks.0.att.time_faaaa", (4, 16, 1)),
    ("blocks.0.att.time_maa_w1", (7,)),
])
@pytest.mark.parametrize("to", ["authors", "fla"])
def test_a_wrong_shape_is_one_error(run, tmp_path: Path, key: str, shape: tuple[int, ...], to: str) -> None:
    source = base(tmp_path, **{key: torch.ones(shape)})
    status, _, err = run("convert", source, tmp_path / "x.pth", "--backbone", "rwkv6", "--to", to)
    assert (status, err.count("\n")) == (2, 1) and not (tmp_path / "x.pth").exists()
    assert err.startswith("aurora: error: ")


@pytest.mark.slow
def test_a_wrong_shape_in_the_other_layout_is_one_error(run, tmp_path: Path) -> None:
    convert(base(tmp_path), tmp_path / "fla", slot="backbone", part="rwkv6", to="fla")
    good = {name: tensor.clone() for name, tensor in open_tensors(tmp_path / "fla").items()}
    for key in good:
        save_file(good | {key: torch.ones(3, 3, 3)}, tmp_path / "fla" / "model.safetensors")
        status, _, err = run("convert", tmp_path / "fla", tmp_path / "x.pth", "--backbone", "rwkv6")
        assert (status, err.count("\n")) == (2, 1), key


@pytest.mark.parametrize(("arguments", "message"), [
    (("--backbone", "rwkv6", "--to", "flaa"), "Did you mean 'fla'"),
    (("--backbone", "rwkv9"), "Did you mean 'rwkv"),
    (("--backbone", "gla"), "has one layout only"),
    (("--backbone", "rwkv6", "--shard-size", "huge"), "5GB or 500MB is"),
    (("--backbone", "rwkv6", "--vision", "siglip"), "give either --backbone NAME or --vision NAME"),
    ((), "give either --backbone NAME or --vision NAME"),
])
def test_a_bad_option_is_one_line(run, tmp_path: Path, arguments, message: str) -> None:
    status, _, err = run("convert", base(tmp_path), tmp_path / "x.pth", *arguments)
    assert (status, err.count("\n")) == (2, 1) and message in err


def test_a_format_that_is_not_written_is_named(run, tmp_path: Path) -> None:
    assert "ends in '.gguf'" in run("convert", base(tmp_path), tmp_path / "x.gguf", "--backbone", "rwkv6")[2]


# ---- targets


def test_nothing_is_overwritten_without_force(run, tmp_path: Path) -> None:
    source, target = base(tmp_path), tmp_path / "out.pth"
    target.write_bytes(b"mine")
    assert "--force replaces it" in run("convert", source, target, "--backbone", "rwkv6")[2]
    assert target.read_bytes() == b"mine"
    assert run("convert", source, target, "--backbone", "rwkv6", "--force")[0] == 0
    assert open_tensors(target).keys() == open_tensors(source).keys()


def test_a_folder_that_holds_anything_else_is_never_replaced(run, tmp_path: Path) -> None:
    source, target = base(tmp_path), tmp_path / "out"
    (target / "diary").mkdir(parents=True)
    err = run("convert", source, target, "--backbone", "rwkv6", "--to", "fla", "--force")[2]
    assert "holds 'diary', which is not part of a model" in err and (target / "diary").is_dir()


def test_the_source_is_never_the_target(run, tmp_path: Path) -> None:
    source = base(tmp_path)
    assert "is the source itself" in run("convert", source, source, "--backbone", "rwkv6", "--force")[2]


def test_a_full_disk_is_said_before_anything_is_written(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=7))
    source = base(tmp_path)
    assert "GiB are free" in run("convert", source, tmp_path / "x.pth", "--backbone", "rwkv6")[2]
    assert names(tmp_path) == {source.name}


@pytest.mark.parametrize("target", ["x.pth", "x.safetensors", "folder"])
def test_a_stopped_conversion_leaves_what_was_there_and_nothing_else(tmp_path: Path, target: str) -> None:
    source = base(tmp_path)
    convert(source, tmp_path / target, slot="backbone", part="rwkv6")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def stop(done: int, all: int) -> None:
        if done > all / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / target, slot="backbone", part="rwkv6", dtype="bfloat16", force=True, progress=stop)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


MEASURED = """
import sys
from pathlib import Path
from aurora.weights.convert import convert
from aurora.registry import BACKBONE

def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
convert(Path(sys.argv[3]), folder / "small", slot="backbone", part="rwkv6", to="fla", dtype="bfloat16")
before = resident("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
steps = [(source, "a.safetensors", "authors", None), (folder / "a.safetensors", "b", "fla", "bfloat16"),
         (folder / "b", "c.pth", "authors", "float32")]
for given, target, layout, dtype in steps:
    convert(given, folder / target, slot="backbone", part="rwkv6", to=layout, dtype=dtype)
print(resident("VmHWM:") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_memory_stays_below_the_largest_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = BACKBONE.build({"name": "rwkv6", "hidden_size": 512, "layers": 6, "head_size": 64}, vocab_size=32768)
    largest = max(tensor.nbytes for tensor in large.state_dict().values())
    torch.save(large.state_dict(), tmp_path / "large.pth")
    assert (tmp_path / "large.pth").stat().st_size > 200e6 and largest == 64 * 2**20
    script = [sys.executable, "-c", MEASURED, tmp_path / "large.pth", tmp_path, base(tmp_path)]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, timeout=120, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[3])
    assert int(done.stdout) < 1.3 * largest, f"{int(done.stdout) / 2**20:.0f} MiB"
    again, given = open_tensors(tmp_path / "c.pth"), large.state_dict()
    assert all(torch.equal(again[name], tensor.bfloat16().float()) for name, tensor in given.items())
