from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from aurora.config import read_config
from aurora.errors import AuroraError
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Connector
from aurora.registry import CONNECTOR, MERGE
from aurora.weights.model_folder import load_model, load_weights, model_hash, save_model


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


def test_a_loaded_model_is_the_saved_one(model, model_folder, video) -> None:
    loaded, config = load_model(model_folder)
    answers = []
    for either in (model, loaded):
        film = VideoModel(either, config).watch(video)
        answers.append(film.ask("What moves?", options=Generation(max_new_tokens=12)))
    assert answers[0] == answers[1] and not loaded.training
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_loading_into_a_built_model_keeps_its_parameters(make_model, model_folder, config) -> None:
    other = make_model()
    before = [id(parameter) for parameter in other.parameters()]
    load_weights(other, model_folder, config)
    assert [id(parameter) for parameter in other.parameters()] == before


def test_weights_take_the_dtype_that_is_asked_for(model_folder) -> None:
    loaded, _ = load_model(model_folder, overrides=["dtype=bfloat16"])
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_parts_without_weights_can_be_replaced(model_folder) -> None:
    loaded, config = load_model(model_folder, overrides=["merge=pool"])
    assert isinstance(loaded.merge, MERGE.get("pool")) and config.merge == {"name": "pool"}


def test_an_interpolation_in_a_model_of_others_is_refused(copy) -> None:
    file = copy / "config.yaml"
    saved = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(saved | {"prompt": {**saved["prompt"], "note": "${oc.env:HOME}"}}))
    with pytest.raises(AuroraError, match=r"holds an interpolation, \$\{\.\.\.\}"):
        read_config(copy)


def test_a_moved_folder_still_loads(copy, tmp_path) -> None:
    copy.rename(tmp_path / "elsewhere")
    load_model(tmp_path / "elsewhere")


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(model, make_config, tmp_path) -> None:
    for keep_ratio in (0.5, 0.25):
        save_model(model, make_config(keep_ratio=keep_ratio), tmp_path / "model")
    assert read_config(tmp_path / "model").keep_ratio == 0.25
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_stopped_save_is_swept_away_by_the_next(model, config, tmp_path) -> None:
    for name in (".model.tmp", ".model.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
    save_model(model, config, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_not_finite_are_never_saved(make_model, config, tmp_path) -> None:
    broken = make_model()
    with torch.no_grad():
        next(broken.connector.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(AuroraError, match=r"connector\..* not finite"):
        save_model(broken, config, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(copy, share) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(AuroraError, match="truncated"):
        load_model(copy)


def test_a_folder_without_weights_is_refused(copy) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(AuroraError, match=r"holds no model\.safetensors"):
        load_model(copy)


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_folder_without_a_config_is_no_model(tmp_path, folder) -> None:
    with pytest.raises(AuroraError, match="is not a model folder"):
        load_model(tmp_path / folder)


def test_a_folder_near_a_model_names_the_way(copy, tmp_path) -> None:
    (tmp_path / "run" / "stage").mkdir(parents=True)
    copy = copy.rename(tmp_path / "run" / "stage" / "model")
    (copy.parent / "config.yaml").write_text("run: mine")  # that of a stage
    for near in (copy.parent, copy.parent.parent):
        with pytest.raises(AuroraError, match=f"{copy} is one"):
            load_model(near)
    (copy / "config.yaml").unlink()
    (copy / "COMMITTED").write_text("{}")
    with pytest.raises(AuroraError, match=f"a training checkpoint: `aurora export {copy} TARGET` makes a model of it"):
        load_model(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"vision: [", "not readable as yaml"),
        (b"\xff\xfe\x00\x80", "not readable as yaml"),
        (b"", "does not describe a model"),
        (b"just text", "does not describe a model"),
        (b"vision: siglip\n", "the config has no merge, sort"),
        (b"!!python/object/apply:os.system ['true']\n", "not readable as yaml"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(copy, content, message) -> None:
    (copy / "config.yaml").write_bytes(content)
    with pytest.raises(AuroraError, match=message):
        load_model(copy)


def test_a_part_that_does_not_exist_is_named(copy) -> None:
    change_config(copy, merge={"name": "tomme"})
    with pytest.raises(AuroraError, match="Did you mean 'tome'"):
        load_model(copy)


def test_weights_of_another_part_are_refused(copy) -> None:
    change_config(copy, connector={"name": "linear"})
    with pytest.raises(AuroraError, match=r"connector 'mlp', the config asks for 'linear'"):
        load_model(copy)


def test_weights_of_another_width_are_refused(copy, config) -> None:
    change_config(copy, backbone={**config.backbone} | {"hidden_size": 64})
    with pytest.raises(AuroraError, match=r"another model .* of another shape: .*\(32"):
        load_model(copy)


def test_weights_of_another_depth_are_refused(copy, config) -> None:
    change_config(copy, backbone={**config.backbone} | {"layers": 3})
    with pytest.raises(AuroraError, match=r"another model .*; missing: backbone\..* \(\d+ in all\)"):
        load_model(copy)


def test_weights_that_are_no_numbers_of_the_kind_are_refused(copy) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    with pytest.raises(AuroraError, match=r"of another type: \S+ torch\.int8 instead of torch\.float32"):
        load_model(copy)


def test_weights_that_diverged_are_refused(copy) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"backbone.ln_out.bias": torch.full_like(tensors["backbone.ln_out.bias"], float("nan"))}, path)
    with pytest.raises(AuroraError, match=r"backbone\.ln_out\.bias holds values that are not finite"):
        load_model(copy)


def test_the_hash_is_that_of_the_content(model, config, model_folder, copy, tmp_path) -> None:
    save_model(model, config, tmp_path / "again")
    (copy / "metrics.json").write_text(json.dumps({"loss": 1.0}))
    assert model_hash(model_folder) == model_hash(copy) == model_hash(tmp_path / "again")


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_the_hash_changes_with_every_file(model_folder, copy, name) -> None:
    raw = bytearray((copy / name).read_bytes())
    raw[-2] ^= 1
    (copy / name).write_bytes(raw)
    assert model_hash(copy) != model_hash(model_folder)


def test_the_files_of_a_tokenizer_move_with_the_model(make_model, make_config, tmp_path) -> None:
    source = tmp_path / "tokenizer"
    letters = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95, "</s>": 96}
    plain = Tokenizer(models.WordLevel(letters, unk_token="</s>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>").save_pretrained(source)
    (source / "model.safetensors").write_bytes(b"weights of another model")
    (source / "tokenization_evil.py").write_text("raise SystemExit")
    options = {"tokenizer": {"name": "hf", "path": str(source)}}
    saved = make_model(**options)
    save_model(saved, make_config(**options), tmp_path / "model")
    shutil.rmtree(source)
    (tmp_path / "model").rename(tmp_path / "moved")
    loaded, _ = load_model(tmp_path / "moved")
    assert loaded.tokenizer.encode("What?") == saved.tokenizer.encode("What?")
    copied = {path.name for path in (tmp_path / "moved" / "tokenizer").iterdir()}
    assert "tokenizer.json" in copied and not copied & {"model.safetensors", "tokenization_evil.py"}


class BufferedConnector(Connector):
    """Holds a buffer that no checkpoint has."""

    def __init__(self, *, in_width: int, out_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(in_width, out_width)
        self.inner.register_buffer("scale", torch.linspace(1, 2, out_width), persistent=False)

    def forward(self, tokens):
        return self.inner(tokens.features) * self.inner.scale


def test_buffers_that_no_checkpoint_holds_are_computed_again(make_model, make_config, tmp_path) -> None:
    if "buffered" not in CONNECTOR.known():
        CONNECTOR.add("buffered", BufferedConnector)
    try:
        options = {"connector": {"name": "buffered"}}
        save_model(make_model(**options), make_config(**options), tmp_path / "model")
        loaded, _ = load_model(tmp_path / "model")
        torch.testing.assert_close(loaded.connector.inner.scale, torch.linspace(1, 2, 32))
    finally:
        del CONNECTOR._classes["buffered"]
