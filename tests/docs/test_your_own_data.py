"""The page "Your own data", word for word."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.blocks.render import encode
from datamodules.blocks.scenes import SceneMaker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for place in ("mine", "chats"):
        (folder / place).mkdir()
        for number, name in enumerate(("cat", "dog")):
            Image.fromarray(np.full((40, 60, 3), 90 * number, np.uint8)).save(folder / place / f"{name}.png")
    (folder / "mine" / "walk.mp4").write_bytes(encode(SceneMaker(random.Random(0)).plain(1)))
    return folder


@pytest.fixture(scope="module")
def said(follow: Callable[..., list[str]], folder: Path) -> list[str]:
    return follow("your-own-data.md", folder)


def test_a_table_becomes_shards_of_pictures_and_videos(said: list[str], folder: Path) -> None:
    kinds = json.loads((folder / "shards/mine/dataset.json").read_text())["kinds"]
    assert kinds == {"text": 0, "image": 2, "images": 0, "video": 1}


def test_conversations_of_every_kind_are_shown_and_found_whole(said: list[str], folder: Path) -> None:
    page = (folder / "preview.html").read_text()
    assert "Which one barks?" in page and "Somebody walks by." in page
    assert said[1].count("nothing") == 2


def test_a_dataset_with_a_name_gives_the_same_bytes(said: list[str], folder: Path) -> None:
    assert (folder / "shards/pets/000000.tar").read_bytes() == (folder / "shards/mine/000000.tar").read_bytes()
