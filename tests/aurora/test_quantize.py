"""Rounding a language model to int8 while its weights are read."""

from __future__ import annotations

import pytest
import torch

from aurora.errors import AuroraError
from aurora.inference.models import random_model
from aurora.registry import BACKBONE
from aurora.weights import loading
from aurora.weights.model_folder import load_model
from components.backbone._layers import Linear
from components.kernels.linear import Int8Linear

SIZES = {"name": "rwkv6", "hidden_size": 32, "layers": 2, "head_size": 16}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ENDINGS = [".pth", ".safetensors"]


@pytest.fixture
def backbone(make_model):
    """With random weights in float32."""
    return make_model().backbone


def empty(like, dtype: torch.dtype):
    """A backbone of the same sizes without memory."""
    with torch.device("meta"):
        return BACKBONE.build(SIZES, vocab_size=like.vocab_size).to(dtype)


def assert_same(found, expected) -> None:
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_weights_rounded_while_they_are_read_are_those_rounded_afterwards(backbone, dtype, ending, tmp_path) -> None:
    path = str(tmp_path / f"base{ending}")
    backbone.save_base(path)
    early, late = empty(backbone, dtype), empty(backbone, dtype)
    early.quantize("int8")
    early.load_base(path)
    late.load_base(path)
    late.quantize("int8")
    assert sum(isinstance(module, Int8Linear) for module in early.modules()) == 2 * 8 + 1
    assert_same(early, late)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_model_is_rounded_while_it_is_read(model_folder, dtype) -> None:
    early, config = load_model(model_folder, overrides=[f"dtype={dtype}", "quantize=int8"])
    late, _ = load_model(model_folder, overrides=[f"dtype={dtype}"])
    late.backbone.quantize("int8")
    assert config.quantize == "int8"
    assert_same(early, late)


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_matrix_is_held_unrounded_once_the_next_one_is_read(backbone, ending, tmp_path, monkeypatch) -> None:
    path = str(tmp_path / f"base{ending}")
    backbone.save_base(path)
    model, held = empty(backbone, torch.bfloat16), []

    def release(_) -> None:
        held.append(sum(isinstance(m, Linear) and not m.weight.is_meta for m in model.modules()))

    monkeypatch.setattr(loading, "release_pages", release)
    monkeypatch.setattr(loading, "_PART_ELEMENTS", 1)
    model.quantize("int8")
    model.load_base(path)
    assert len(held) == len(backbone.state_dict()) and not any(held)


def test_base_weights_are_rounded_while_they_are_read(backbone, tmp_path) -> None:
    backbone.save_base(str(tmp_path / "base.pth"))
    overrides = ["tokenizer=bytes", "vision.width=32", "vision.layers=2", "vision.heads=2", "vision.mlp_width=64",
                 "vision.image_size=32", "vision.patch_size=8",
                 *(f"backbone.{key}={value}" for key, value in SIZES.items()),
                 f"base_weights.backbone.rwkv6={tmp_path / 'base.pth'}"]
    early, config, sources = random_model([*overrides, "quantize=int8"])
    saved, _, _ = random_model([*overrides, "quantize=int8"], rounded=False)
    assert sources["backbone"].endswith("base.pth") and config.quantize == "int8"
    assert_same(saved.backbone, backbone)
    backbone.quantize("int8")
    assert_same(early.backbone, backbone)
    assert all(not tensor.is_meta for tensor in early.state_dict().values())


@pytest.mark.parametrize("kind", ["int4", "INT8"])
def test_an_unknown_rounding_is_refused_before_weights_are_read(model_folder, tmp_path, kind) -> None:
    (tmp_path / "config.yaml").write_bytes((model_folder / "config.yaml").read_bytes())
    with pytest.raises(AuroraError, match=r"quantize .* is unknown"):
        load_model(tmp_path, overrides=[f"quantize={kind}"])
