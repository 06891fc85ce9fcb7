"""Reading and writing SigLIP's weights in the layout of `transformers`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel, SiglipVisionModel

from aurora.errors import AuroraError
from aurora.registry import VISION

SMALL = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_width": 48}
TOWER = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48}
TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def build(**options: object) -> torch.nn.Module:
    return VISION.build({"name": "siglip", **SMALL, **options})


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A directory with a whole SigLIP: both towers, head, scale."""
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TOWER)).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def tower_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {key: value for key, value in tensors.items() if key.startswith("vision_model.")}


def assert_loaded(encoder: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    own = encoder.base_state_dict()
    assert own
    for key, value in own.items():
        assert torch.equal(value, expected[key]), key


def test_a_whole_siglip_gives_its_vision_tower(whole: Path) -> None:
    encoder = build()
    encoder.load_base(str(whole))
    assert_loaded(encoder, tower_of(whole))


def test_a_bare_safetensors_file_is_enough(whole: Path, tmp_path: Path) -> None:
    save_file(tower_of(whole), tmp_path / "tower.safetensors")
    encoder = build()
    encoder.load_base(str(tmp_path / "tower.safetensors"))
    assert_loaded(encoder, tower_of(whole))


def test_names_without_the_prefix_are_known_too(whole: Path, tmp_path: Path) -> None:
    bare = {key.removeprefix("vision_model."): value for key, value in tower_of(whole).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    encoder = build()
    encoder.load_base(str(tmp_path / "bare.safetensors"))
    assert_loaded(encoder, tower_of(whole))


def test_shards_are_read_by_their_index(whole: Path, tmp_path: Path) -> None:
    SiglipModel.from_pretrained(whole).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    encoder = build()
    encoder.load_base(str(tmp_path / "shards"))
    assert_loaded(encoder, tower_of(whole))


@pytest.mark.parametrize("feature_layer", [-1, -2, -3])
def test_what_is_saved_loads_again_as_a_file_or_a_directory(feature_layer: int, tmp_path: Path) -> None:
    encoder = build(feature_layer=feature_layer)
    for place in (tmp_path / "tower.safetensors", tmp_path / "folder"):
        encoder.save_base(str(place))
        again = build(feature_layer=feature_layer)
        again.load_base(str(place))
        assert_loaded(again, encoder.base_state_dict())


def test_transformers_opens_what_is_saved(tmp_path: Path) -> None:
    encoder = build(feature_layer=-1)
    encoder.save_base(str(tmp_path))
    model = SiglipVisionModel.from_pretrained(tmp_path)
    theirs = model.state_dict()
    for key, value in encoder.base_state_dict().items():
        assert torch.equal(theirs[key if key in theirs else key.removeprefix("vision_model.")], value), key


def test_the_saved_names_are_those_of_transformers(whole: Path) -> None:
    names = {key for key in tower_of(whole) if ".head." not in key}
    assert set(build(feature_layer=-1).base_state_dict()) == names


def test_loading_keeps_the_encoders_own_precision(whole: Path) -> None:
    encoder = build().bfloat16()
    encoder.load_base(str(whole))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}


# ---- errors


def test_missing_tensors_are_named(whole: Path, tmp_path: Path) -> None:
    tower = tower_of(whole)
    del tower["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(tower, tmp_path / "cut.safetensors")
    with pytest.raises(AuroraError, match=r"missing: vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias"):
        build().load_base(str(tmp_path / "cut.safetensors"))


def test_tensors_of_another_shape_are_named_and_nothing_is_changed(whole: Path, tmp_path: Path) -> None:
    save_file(tower_of(whole), tmp_path / "tower.safetensors")
    encoder = build(image_size=48)
    before = encoder.base_state_dict()
    with pytest.raises(AuroraError, match=r"position_embedding.weight \(16, 32\) instead of \(36, 32\)"):
        encoder.load_base(str(tmp_path / "tower.safetensors"))
    assert_loaded(encoder, before)


def test_a_tower_with_other_heads_is_refused_although_its_shapes_fit(whole: Path) -> None:
    with pytest.raises(AuroraError, match="num_attention_heads is 4 where 2"):
        build(heads=2).load_base(str(whole))


def test_a_deeper_tower_is_refused_because_its_layers_would_be_counted_wrongly(whole: Path) -> None:
    with pytest.raises(AuroraError, match="has 3 blocks where layers=2"):
        build(layers=2).load_base(str(whole))


def test_pickled_weights_are_read_without_running_what_they_hold(whole: Path, tmp_path: Path) -> None:
    torch.save(tower_of(whole), tmp_path / "pytorch_model.bin")
    encoder = build()
    encoder.load_base(str(tmp_path))
    assert_loaded(encoder, tower_of(whole))
    torch.save({**tower_of(whole), "more": tmp_path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AuroraError, match="more than tensors"):
        build().load_base(str(tmp_path))


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"no weights at .*nowhere"):
        build().load_base(str(tmp_path / "nowhere"))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(AuroraError, match=r"model\.safetensors is not a readable safetensors file"):
        build().load_base(str(tmp_path))


def test_an_index_that_names_an_absent_shard_is_an_error(tmp_path: Path) -> None:
    index = {"weight_map": {"vision_model.post_layernorm.bias": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AuroraError, match=r"not there.*model-00001-of-00002"):
        build().load_base(str(tmp_path))


def test_an_index_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(AuroraError, match="cannot be read as JSON"):
        build().load_base(str(tmp_path))
