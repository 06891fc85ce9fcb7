"""Models of transformers inside the whole model: sessions over memory that grows, and folders that can be moved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aurora.inference.film_file import FilmMismatch
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.model import AuroraModel
from aurora.weights.model_folder import load_model, save_model

SHORT = Generation(max_new_tokens=8)
QUESTIONS = ["What?", "What moves in the video, and where to?"]
HOSTED = [{"name": "transformer", "hidden_size": 32, "layers": 2, "head_size": 16},
          {"name": "hf", "model_type": "recurrent_gemma", "hidden_size": 32, "layers": 3, "head_size": 16,
           "config": {"attention_window_size": 8}}]


@pytest.fixture(params=HOSTED, ids=lambda backbone: backbone["name"])
def hosted(request: pytest.FixtureRequest, make_model: Callable[..., AuroraModel], make_config) -> VideoModel:
    return VideoModel(make_model(backbone=request.param), make_config(backbone=request.param))


@pytest.mark.slow
def test_questions_of_unequal_lengths_are_answered_side_by_side_as_one_by_one(hosted: VideoModel, video: Path) -> None:
    film = hosted.watch(video)
    assert film.ask_all(QUESTIONS, SHORT) == [film.ask(question, options=SHORT) for question in QUESTIONS]


def test_a_film_is_saved_and_goes_on(hosted: VideoModel, video: Path, tmp_path: Path) -> None:
    film = hosted.watch(video)
    film.save(tmp_path / "film")
    assert hosted.open(tmp_path / "film").ask(QUESTIONS[0], options=SHORT) == film.ask(QUESTIONS[0], options=SHORT)


def test_a_film_of_another_transformer_is_refused(
    make_model: Callable[..., AuroraModel], make_config, video: Path, tmp_path: Path
) -> None:
    backbones = HOSTED[0], {**HOSTED[0], "head_size": 8}
    one, other = (VideoModel(make_model(backbone=each), make_config(backbone=each)) for each in backbones)
    one.watch(video).save(tmp_path / "film")
    with pytest.raises(FilmMismatch, match="what differs: backbone"):
        other.open(tmp_path / "film")


@pytest.mark.parametrize(("name", "model_type"), [("hf", "falcon_mamba"), ("transformer", "qwen2")])
def test_a_saved_model_does_without_the_folder_that_it_was_built_from(
    name: str, model_type: str, make_config: Callable[..., dict[str, Any]], make_model: Callable[..., AuroraModel],
    tmp_path: Path,
) -> None:
    more = {} if name == "hf" else {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    theirs = AutoConfig.for_model(model_type, vocab_size=300, hidden_size=32, num_hidden_layers=2, **more)
    AutoModelForCausalLM.from_config(theirs).save_pretrained(tmp_path / "theirs")
    backbone = {"name": name, "path": str(tmp_path / "theirs")}
    model = make_model(backbone=backbone)
    save_model(model, make_config(backbone=backbone), tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")
    shutil.move(tmp_path / "ours", tmp_path / "elsewhere")
    again, _ = load_model(tmp_path / "elsewhere")
    tokens = torch.arange(20)
    expected, _ = model.backbone(model.backbone.embed(tokens), torch.tensor([0, 20]))
    hidden, _ = again.backbone(again.backbone.embed(tokens), torch.tensor([0, 20]))
    torch.testing.assert_close(again.backbone.logits(hidden), model.backbone.logits(expected), rtol=0, atol=0)
    assert len(list(again.backbone.parameters())) == len(list(model.backbone.parameters()))
