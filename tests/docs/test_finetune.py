"""The page "Fine-tune a model on your own data", word for word, from a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aurora.assemble import build_model
from aurora.config import load_config, read_config
from aurora.weights.model_folder import load_model, save_model

MODEL = Path("runs/demo/language_video/model")
TINY = ("vision={image_size: 32, patch_size: 8, width: 32, layers: 3, heads: 2, mlp_width: 64}", "tokenizer=bytes",
        "backbone=rwkv7", "backbone={hidden_size: 32, layers: 2, head_size: 16}", "keep_ratio=0.5", "merge=pool")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "mine").mkdir()
    for number, name in enumerate(("cat", "dog")):
        Image.fromarray(np.full((40, 60, 3), 90 * number, np.uint8)).save(folder / "mine" / f"{name}.png")
    (folder / "mine" / "rows.csv").write_text(
        "file,question,answer\ncat.png,What is this?,A cat.\ndog.png,What is this?,A dog.\n")
    config = load_config(*TINY).model
    torch.manual_seed(0)
    save_model(build_model(config), config, folder / MODEL)
    return folder


@pytest.fixture(scope="module")
def said(follow: Callable[..., list[str]], folder: Path) -> str:
    return follow("finetune.md", folder)[0]


def test_the_new_model_has_the_parts_and_sizes_of_the_one_it_started_from(said: str, folder: Path) -> None:
    before, now = read_config(folder / MODEL), read_config(folder / "runs/mine/finetune/model")
    assert now == before and now.backbone["name"] == "rwkv7" and now.merge["name"] == "pool"
    assert "keep ratio  0.5" in said and f"weights     {MODEL}" in said


def test_all_of_its_parts_have_learned(said: str, folder: Path) -> None:
    (before, _), (now, _) = (load_model(folder / place) for place in (MODEL, "runs/mine/finetune/model"))
    old = dict(before.named_parameters())
    moved = {name.partition(".")[0] for name, value in now.named_parameters() if not torch.equal(value, old[name])}
    assert moved == {"vision", "connector", "backbone"}
