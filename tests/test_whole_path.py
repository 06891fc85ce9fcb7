"""Every merge with every backbone, from shards to an answer; and the other slots swapped one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora.config import load_config
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.registry import BACKBONE, CONNECTOR, MERGE, PROMPT, SORT
from aurora.training.run import train
from aurora.weights.model_folder import load_model
from datamodules.blocks.build import build

SMALL = (
    "experiment=blocks",
    "stage=language_video",
    "stages.language_video.after=null",
    "stages.language_video.max_steps=2",
    "stages.language_video.global_batch=2",
    "data.row_tokens=1024",
    "vision={width: 32, layers: 5, heads: 2, mlp_width: 64}",
    "backbone={hidden_size: 32, layers: 2, head_size: 16}",
    "base_weights={vision: {siglip: null}, backbone: {rwkv6: null}}",
    "logger=csv",
    "trainer.progress=none",
)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    build(folder, scale=0.01, workers=1)
    return folder


def train_and_ask(blocks: Path, run: Path, *swaps: str) -> str:
    """The answer of a model that was trained for two steps with some parts swapped on the command line."""
    trained = train(load_config(*SMALL, f"run={run}", f"data.root={blocks}", *swaps))
    model, config = load_model(trained)
    first = json.loads((blocks / "heldout" / "questions.jsonl").read_text().splitlines()[0])
    film = VideoModel(model, config).watch(blocks / "heldout" / first["video"], prompt=config.prompt)
    return film.ask(first["question"], options=Generation(max_new_tokens=4))


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGE.known())
@pytest.mark.parametrize("backbone", BACKBONE.known())
def test_every_merge_trains_and_answers_with_every_backbone(
    merge: str, backbone: str, blocks: Path, tmp_path: Path
) -> None:
    assert isinstance(train_and_ask(blocks, tmp_path, f"merge={merge}", f"backbone={backbone}"), str)


@pytest.mark.slow
@pytest.mark.parametrize(
    "swap",
    [
        *(f"sort={name}" for name in SORT.known()),
        *(f"connector={name}" for name in CONNECTOR.known()),
        *(f"prompt={name}" for name in PROMPT.known()),
        "reader=decord",
        "merge.schedule=floor",
        "vision.resize=keep_aspect",
    ],
)
def test_every_other_part_can_be_swapped(swap: str, blocks: Path, tmp_path: Path) -> None:
    assert isinstance(train_and_ask(blocks, tmp_path, swap), str)
