"""The page "Use Aurora from your own Lightning Trainer", word for word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def output(follow: Callable[..., list[str]], folder: Path) -> str:
    return follow("lightning.md", folder)[0]


def test_a_trainer_of_ones_own_resumes_at_the_step_where_it_stopped(output: str) -> None:
    assert "Restored all states from the checkpoint" in output and "steps 12 best" in output


def test_the_best_checkpoints_are_folders_with_everything_but_tensors_in_json(output: str, folder: Path) -> None:
    kept = sorted(folder.glob("runs/mine/best/*.ckpt"))
    assert len(kept) == 3 and kept[2].name == "last.ckpt"
    assert json.loads((kept[2] / "state.json").read_text())["global_step"] == 12
    for path in kept:
        assert {"COMMITTED", "state.json"} <= {file.name for file in path.iterdir()}
        steps = json.loads((path / "state.json").read_text())["global_step"]
        # how many steps an epoch has depends on how the tokenizer packs rows
        assert path.name == "last.ckpt" or re.fullmatch(rf"epoch=[01]-step={steps}\.ckpt", path.name)
        assert steps in (4, 8, 12)
    assert "val_loss" in output.rpartition("best")[2]
