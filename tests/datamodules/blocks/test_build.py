from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from aurora.errors import AuroraError
from datamodules.blocks.build import DATASETS, HELDOUT, SAMPLES, build, heldout_question, write_heldout
from datamodules.blocks.families import FAMILIES
from datamodules.blocks.render import encode
from datamodules.blocks.scenes import Scene, SceneMaker
from datamodules.shards.writing import load_index


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    build(folder, seed=3, scale=0.02, workers=2)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build(tmp_path, seed=3, scale=0.02, workers=1)
    assert digests(tmp_path) == digests(built)


def test_every_stage_has_verified_shards(make: SimpleNamespace, built: Path) -> None:
    for dataset in SAMPLES:
        assert len(load_index(built / dataset).samples) >= 25
        assert make.wrong(built / dataset) == []


@pytest.mark.parametrize("folder", HELDOUT)
def test_held_out_questions_name_their_videos(built: Path, folder: str) -> None:
    lines = [json.loads(line) for line in (built / folder / "questions.jsonl").read_text().splitlines()]
    assert {line["family"] for line in lines} == set(FAMILIES)
    for line in lines:
        assert (built / folder / line["video"]).is_file()
        assert len(line["options"]) == 4
        assert 0 <= line["answer"] < 4


def test_videos_are_h264_of_the_length_of_their_scene() -> None:
    scene = SceneMaker(random.Random(0)).plain(2)
    with av.open(io.BytesIO(encode(scene))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = list(container.decode(stream))
    assert len(frames) == round(scene.duration * 4)


def test_bytes_do_not_depend_on_what_the_memory_held() -> None:
    code = ("import hashlib, random; from datamodules.blocks.render import encode; "
            "from datamodules.blocks.families import FAMILIES; from datamodules.blocks.scenes import SceneMaker; "
            "maker = SceneMaker(random.Random(0)); "
            "print(hashlib.sha256(b''.join(encode(f.make(maker)) for f in FAMILIES.values())).hexdigest())")
    root = Path(__file__).parents[3]
    seen = {subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True,
                           env={**os.environ, "MALLOC_PERTURB_": filling}).stdout for filling in ("0", "165")}
    assert len(seen) == 1


def test_held_out_questions_are_held_out(tmp_path: Path) -> None:
    write_heldout(tmp_path / "heldout", 1, seed=0)
    assert len((tmp_path / "heldout" / "questions.jsonl").read_text().splitlines()) == len(FAMILIES)
    for family, split in product(FAMILIES, ("validation", "test")):
        assert heldout_question(family, random.Random(1), split)[0].split == split


def test_no_scene_of_another_split_is_drawn_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []
    monkeypatch.setattr("datamodules.blocks.build.encode", lambda scene: drawn.append(scene) or b"")
    monkeypatch.setattr("datamodules.blocks.build.picture", lambda scene, time: drawn.append(scene) or b"")
    for make, index in product(DATASETS.values(), range(40)):
        make(f"{index}", random.Random(index))
    assert len(drawn) > 150
    assert {scene.split for scene in drawn} == {"train"}


@pytest.mark.parametrize("scale", [0, -1, 1e9])
def test_a_scale_that_makes_no_sense_is_refused(tmp_path: Path, scale: float) -> None:
    with pytest.raises(AuroraError, match="scale"):
        build(tmp_path, scale=scale)
