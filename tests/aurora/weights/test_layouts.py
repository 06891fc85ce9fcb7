"""Layouts: their names are pinned, what they hold means the same, and the way back gives the same bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from aurora.errors import AuroraError
from aurora.registry import BACKBONE, VISION
from aurora.weights.convert import convert
from aurora.weights.io import open_tensors

VOCAB = 40
SIZES: dict[str, dict[str, Any]] = {
    "rwkv6": {"hidden_size": 64, "layers": 3, "head_size": 16, "mix_rank": 8, "decay_rank": 12, "ffn_size": 96},
    "rwkv7": {"hidden_size": 64, "layers": 3, "head_size": 16, "ffn_size": 128, "decay_rank": 8, "rate_rank": 12,
              "value_rank": 16, "gate_rank": 20},
    "mamba2": {"hidden_size": 48, "layers": 2, "head_size": 16, "state_size": 24},
}
TOKENS = torch.randint(0, VOCAB, (23,), generator=torch.Generator().manual_seed(5))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    part = BACKBONE.build({"name": name, **SIZES[name]}, vocab_size=VOCAB).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return part


@pytest.fixture(params=["rwkv6", "rwkv7", "mamba2"])
def base(request, tmp_path: Path) -> tuple[str, Path]:
    part = build(request.param)
    part.save_base(str(tmp_path / "base.pth"))
    return request.param, tmp_path / "base.pth"


def assert_same(one: Path, other: Path) -> None:
    first, second = open_tensors(one), open_tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


OTHER = {"rwkv6": ["fla"], "rwkv7": ["fla"], "mamba2": ["authors", "aurora"]}


def test_every_layout_leads_back_to_the_same_values(base) -> None:
    name, path = base
    for layout in OTHER[name]:
        there, back = path.parent / layout, path.parent / f"{layout}.pth"
        convert(path, there, slot="backbone", part=name, to=layout, shard_bytes=20_000)
        convert(there, back, slot="backbone", part=name)
        assert_same(back, path)


def test_the_part_reads_what_comes_back(base) -> None:
    name, path = base
    target = path.parent / "back.safetensors"
    convert(path, path.parent / "there", slot="backbone", part=name, to=OTHER[name][0])
    convert(path.parent / "there", target, slot="backbone", part=name)
    part = BACKBONE.build({"name": name, **SIZES[name]}, vocab_size=VOCAB)
    part.load_base(str(target))
    for key, tensor in build(name).state_dict().items():
        assert torch.equal(part.state_dict()[key], tensor), key


def test_a_part_reads_a_folder_of_shards(base) -> None:
    name, path = base
    convert(path, path.parent / "shards", slot="backbone", part=name, shard_bytes=20_000)
    assert len(list((path.parent / "shards").glob("*.safetensors"))) > 2
    part = BACKBONE.build({"name": name, **SIZES[name]}, vocab_size=VOCAB)
    part.load_base(str(path.parent / "shards"))
    for key, tensor in build(name).state_dict().items():
        assert torch.equal(part.state_dict()[key], tensor), key


# ---- RWKV in flash-linear-attention's layout: names and shapes as its models have them (0.6.0)

FLA6_BLOCK = {
    "attn_norm.weight": (64,), "attn_norm.bias": (64,), "ffn_norm.weight": (64,), "ffn_norm.bias": (64,),
    "attn.x_bias": (5, 64), "attn.bonus": (4, 16), "attn.x_proj.0.mu": (64,), "attn.x_proj.0.linear.weight": (40, 64),
    "attn.x_proj.2.weight": (64, 40), "attn.r_proj.linear.weight": (64, 64),
    "attn.w_proj.linear.lora.0.weight": (12, 64), "attn.w_proj.linear.lora.2.weight": (64, 12),
    "attn.w_proj.linear.lora.2.bias": (64,), "attn.k_proj.linear.weight": (64, 64),
    "attn.v_proj.linear.weight": (64, 64), "attn.g_proj.linear.weight": (64, 64), "attn.g_norm.weight": (64,),
    "attn.g_norm.bias": (64,), "attn.o_proj.weight": (64, 64), "ffn.key.mu": (64,), "ffn.key.linear.weight": (96, 64),
    "ffn.value.weight": (64, 96), "ffn.receptance.mu": (64,), "ffn.receptance.linear.weight": (64, 64),
}
FLA7_BLOCK = {
    "attn_norm.weight": (64,), "attn_norm.bias": (64,), "ffn_norm.weight": (64,), "ffn_norm.bias": (64,),
    **{f"attn.x_{letter}": (1, 1, 64) for letter in "rwkvag"}, "attn.k_k": (64,), "attn.k_a": (64,),
    "attn.r_k": (4, 16), **{f"attn.{letter}_proj.weight": (64, 64) for letter in "rkvo"},
    "attn.w_lora.lora.0.weight": (8, 64), "attn.w_lora.lora.2.weight": (64, 8), "attn.w_lora.lora.2.bias": (64,),
    "attn.a_lora.lora.0.weight": (12, 64), "attn.a_lora.lora.2.weight": (64, 12), "attn.a_lora.lora.2.bias": (64,),
    "attn.g_lora.lora.0.weight": (20, 64), "attn.g_lora.lora.2.weight": (64, 20),
    "attn.g_norm.weight": (64,), "attn.g_norm.bias": (64,), "ffn.x_k": (64,), "ffn.key.weight": (128, 64),
    "ffn.value.weight": (64, 128),
}
FLA7_LATER = {"attn.v_lora.lora.0.weight": (16, 64), "attn.v_lora.lora.2.weight": (64, 16),
              "attn.v_lora.lora.2.bias": (64,)}
FLA_AROUND = {
    "model.embeddings.weight": (VOCAB, 64), "lm_head.weight": (VOCAB, 64), "model.norm.weight": (64,),
    "model.norm.bias": (64,), "model.layers.0.pre_norm.weight": (64,), "model.layers.0.pre_norm.bias": (64,),
}


@pytest.mark.parametrize(("name", "block", "later"), [("rwkv6", FLA6_BLOCK, {}), ("rwkv7", FLA7_BLOCK, FLA7_LATER)])
def test_the_names_and_shapes_are_those_of_flash_linear_attention(name, block, later, tmp_path: Path) -> None:
    build(name).save_base(str(tmp_path / "base.pth"))
    convert(tmp_path / "base.pth", tmp_path / "fla", slot="backbone", part=name, to="fla")
    wanted = FLA_AROUND | {f"model.layers.{layer}.{key}": shape for layer in range(3)
                           for key, shape in {**block, **(later if layer else {})}.items()}
    assert {key: tuple(tensor.shape) for key, tensor in open_tensors(tmp_path / "fla").items()} == wanted


def converted(name: str, tmp_path: Path) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    part = build(name)
    part.save_base(str(tmp_path / "base.pth"))
    convert(tmp_path / "base.pth", tmp_path / "fla", slot="backbone", part=name, to="fla")
    return part, open_tensors(tmp_path / "fla"), json.loads((tmp_path / "fla" / "config.json").read_text())


@torch.no_grad()
def test_rwkv6_mixes_the_same_in_the_other_order(tmp_path: Path) -> None:
    """The layer's formula by its own names: five low-rank mixtures, in the order r, w, k, v, g."""
    part, theirs, _ = converted("rwkv6", tmp_path)
    x, before = torch.randn(7, 64), torch.randn(7, 64)
    delta, layer = before - x, "model.layers.1.attn."
    hidden = torch.tanh((x + delta * theirs[f"{layer}x_proj.0.mu"]) @ theirs[f"{layer}x_proj.0.linear.weight"].t())
    out = theirs[f"{layer}x_proj.2.weight"].view(64, 5, 8)
    mu = torch.einsum("tnr,hnr->tnh", hidden.view(7, 5, 8), out) + theirs[f"{layer}x_bias"]
    r, w, k, v, g = (x + delta * mu[:, index] for index in range(5))
    ours = part.blocks[1].att._mix(x, before)
    for mine, other in zip(ours, (w, k, v, r, g), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    lora = f"{layer}w_proj.linear.lora."
    decay = torch.tanh(w @ theirs[f"{lora}0.weight"].t()) @ theirs[f"{lora}2.weight"].t() + theirs[f"{lora}2.bias"]
    torch.testing.assert_close(part.blocks[1].att._decay(ours[0]), decay, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rwkv7_decays_the_same_by_the_other_names(tmp_path: Path) -> None:
    part, theirs, _ = converted("rwkv7", tmp_path)
    x, lora = torch.randn(7, 64), "model.layers.2.attn.w_lora.lora."
    raw = torch.tanh(x @ theirs[f"{lora}0.weight"].t()) @ theirs[f"{lora}2.weight"].t() + theirs[f"{lora}2.bias"]
    torch.testing.assert_close(part.blocks[2].att._log_decay(x), -0.6065306597126334 * raw.sigmoid(), rtol=1e-5,
                               atol=1e-6)


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7"])
def test_the_config_says_the_sizes(name: str, tmp_path: Path) -> None:
    _, _, config = converted(name, tmp_path)
    wanted = {"model_type": name, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 4, "vocab_size": VOCAB,
              "norm_first": True, "tie_word_embeddings": False, "dtype": "float32"}
    sizes = {"rwkv6": {"intermediate_size": 96, "proj_low_rank_dim": 8, "gate_low_rank_dim": 12, "expand_k": 1.0,
                       "expand_v": 1.0},
             "rwkv7": {"intermediate_size": 128, "head_dim": 16, "decay_low_rank_dim": 8, "a_low_rank_dim": 12,
                       "v_low_rank_dim": 16, "gate_low_rank_dim": 20, "value_dim": [64, 64, 64]}}[name]
    assert {key: config[key] for key in wanted | sizes} == wanted | sizes


def test_a_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    converted("rwkv6", tmp_path)
    file = tmp_path / "fla" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"expand_k": 0.5}))
    with pytest.raises(AuroraError, match=r"expand_k 0.5; backbone 'rwkv6' has 1.0"):
        convert(tmp_path / "fla", tmp_path / "x.pth", slot="backbone", part="rwkv6")


def test_the_value_residual_of_the_first_layer_is_left_out(tmp_path: Path) -> None:
    tensors = build("rwkv7").state_dict()
    extra = {"blocks.0.att.v0": torch.ones(1, 1, 64), "blocks.0.att.v1": torch.ones(64, 16),
             "blocks.0.att.v2": torch.ones(16, 64)}
    torch.save({**tensors, **extra}, tmp_path / "base.pth")
    report = convert(tmp_path / "base.pth", tmp_path / "fla", slot="backbone", part="rwkv7", to="fla")
    assert (report.left_out, report.missing, report.unexpected) == (sorted(extra), [], [])


def test_tuned_states_stay_in_the_authors_layout_and_have_no_place_in_the_other(tmp_path: Path) -> None:
    tuned = {f"blocks.{layer}.att.time_state": torch.randn(4, 16, 16) for layer in range(3)}
    torch.save({**build("rwkv6").state_dict(), **tuned}, tmp_path / "base.pth")
    report = convert(tmp_path / "base.pth", tmp_path / "same.safetensors", slot="backbone", part="rwkv6")
    assert report.left_out == [] and torch.equal(open_tensors(tmp_path / "same.safetensors")["blocks.2.att.time_state"],
                                                 tuned["blocks.2.att.time_state"])
    report = convert(tmp_path / "base.pth", tmp_path / "fla", slot="backbone", part="rwkv6", to="fla")
    assert report.left_out == sorted(tuned)


def test_a_file_of_the_old_format_is_converted_too(tmp_path: Path) -> None:
    """It cannot be mapped, and parts of it are needed more than once."""
    torch.save(build("rwkv6").state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(build("rwkv6").state_dict(), tmp_path / "new.pth")
    for name in ("old", "new"):
        convert(tmp_path / f"{name}.pth", tmp_path / name, slot="backbone", part="rwkv6", to="fla")
        convert(tmp_path / name, tmp_path / f"{name}-back.pth", slot="backbone", part="rwkv6")
    assert_same(tmp_path / "old", tmp_path / "new")
    assert_same(tmp_path / "old-back.pth", tmp_path / "new.pth")


# ---- Mamba-2, against transformers


@pytest.fixture(scope="module")
def mamba(tmp_path_factory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    config = Mamba2Config(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, head_dim=16, num_heads=6,
                          state_size=24, n_groups=1, expand=2, chunk_size=16, tie_word_embeddings=True)
    model = Mamba2ForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("mamba")
    model.save_pretrained(folder, max_shard_size="40KB")
    return model, folder


@torch.no_grad()
def test_mamba2_of_transformers_goes_through_every_layout_and_is_itself_again(mamba, tmp_path: Path) -> None:
    theirs, folder = mamba
    steps = [folder, tmp_path / "authors.pth", tmp_path / "ours.safetensors", tmp_path / "again"]
    for (given, target), layout in zip(pairwise(steps), ("authors", "aurora", "transformers"), strict=True):
        convert(given, target, slot="backbone", part="mamba2", to=layout)
    assert torch.equal(open_tensors(steps[1])["lm_head.weight"], theirs.backbone.embeddings.weight)
    again = AutoModelForCausalLM.from_pretrained(steps[-1]).eval()
    assert isinstance(again, Mamba2ForCausalLM)
    expected = theirs(TOKENS[None], use_cache=False).logits
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    torch.testing.assert_close(again(TOKENS[None], use_cache=False).logits, expected, rtol=1e-5, atol=1e-6)
    ours = BACKBONE.build({"name": "mamba2", **SIZES["mamba2"]}, vocab_size=VOCAB)
    ours.load_base(str(steps[-1]))
    hidden, _ = ours(ours.embed(TOKENS), torch.tensor([0, len(TOKENS)]))
    torch.testing.assert_close(ours.logits(hidden), expected[0], rtol=1e-4, atol=1e-5)


def test_what_ours_writes_is_a_mamba2_of_transformers(tmp_path: Path) -> None:
    build("mamba2").save_base(str(tmp_path / "base.safetensors"))
    convert(tmp_path / "base.safetensors", tmp_path / "hf", slot="backbone", part="mamba2")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.backbone.layers[1].mixer.A_log, build("mamba2").layers[1].mixer.A_log)


def test_a_head_that_is_not_tied_is_refused(mamba, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in mamba[0].state_dict().items()}
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(AuroraError, match=r"lm_head\.weight of its own"):
        convert(tmp_path / "model.safetensors", tmp_path / "x.pth", slot="backbone", part="mamba2")


@pytest.mark.parametrize(("change", "message"), [
    ({"n_groups": "many"}, "a config.json of no mamba2"), ({"time_step_limit": "short"}, "could not convert|unpack"),
    ({"n_groups": 8}, "n_groups 8"), ({"time_step_limit": [0.1, 1.0]}, "time_step_limit"),
    ({"model_type": "mamba"}, "model_type 'mamba'"),
])
def test_a_mamba2_that_ours_cannot_be_is_refused(mamba, tmp_path: Path, change, message) -> None:
    config = json.loads((mamba[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    save_file({name: tensor.clone() for name, tensor in mamba[0].state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(AuroraError, match=message) as caught:
        convert(tmp_path, tmp_path / "x.pth", slot="backbone", part="mamba2")
    assert str(tmp_path) in str(caught.value)


# ---- SigLIP, against transformers

TOWER = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48}
TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TOWER)).save_pretrained(folder)
    return folder


def test_a_siglip_tower_becomes_ours_and_transformers_again(siglip: Path, tmp_path: Path) -> None:
    report = convert(siglip, tmp_path / "ours.safetensors", slot="vision", part="siglip", to="aurora")
    assert {name.split(".")[0] for name in report.left_out} >= {"text_model", "logit_scale", "logit_bias"}
    ours = load_file(tmp_path / "ours.safetensors")
    encoder = VISION.build({"name": "siglip", "image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4,
                            "mlp_width": 48, "feature_layer": -1})
    encoder.load_base(str(siglip))
    assert ours.keys() == encoder.state_dict().keys()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(ours[name], tensor), name


@torch.no_grad()
def test_transformers_opens_the_tower_that_is_written(siglip: Path, tmp_path: Path) -> None:
    convert(siglip, tmp_path / "tower", slot="vision", part="siglip")
    pixels = torch.randn(2, 3, 32, 32)
    whole, tower = SiglipModel.from_pretrained(siglip), SiglipVisionModel.from_pretrained(tmp_path / "tower")
    assert torch.equal(tower(pixels).last_hidden_state, whole.vision_model(pixels).last_hidden_state)


def test_a_siglip_without_its_config_is_refused(siglip: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((siglip / "model.safetensors").read_bytes())
    with pytest.raises(AuroraError, match=r"no config\.json lies next to"):
        convert(tmp_path, tmp_path / "x.safetensors", slot="vision", part="siglip")
