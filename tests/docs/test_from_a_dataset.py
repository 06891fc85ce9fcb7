"""The page "From a dataset to a training run", word for word, on small copies of three datasets in their layouts."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.blocks.render import encode
from datamodules.blocks.scenes import SceneMaker


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 40 + 5 * number, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def llava_mix_665k(folder: Path) -> None:
    """Conversations about pictures, one in four of text alone; one picture is missing."""
    (folder / "coco" / "train2017").mkdir(parents=True)
    records = []
    for number in range(24):
        record = {"id": f"{number:012d}", "conversations": [
            {"from": "human", "value": "<image>\nWhat is in it?"}, {"from": "gpt", "value": f"Number {number}."},
            {"from": "human", "value": "Is it dark?"}, {"from": "gpt", "value": "Yes."}]}
        if number % 4 == 3:
            record["conversations"][0]["value"] = "What is next?"
        else:
            name = f"coco/train2017/{number:012d}.jpg"
            record["image"] = name
            if number != 8:
                (folder / name).write_bytes(picture(number))
        records.append(record)
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(records))


def sharegpt4video(folder: Path) -> None:
    """Captions of videos, by spans of time and of the whole."""
    (folder / "mixkit" / "Sky").mkdir(parents=True)
    lines = []
    for number in range(5):
        name = f"mixkit/Sky/clip-{number}.mp4"
        (folder / name).write_bytes(encode(SceneMaker(random.Random(number)).plain(2)))
        captions = [{"idx": "0", "content": "A beginning."}, {"idx": "-1", "content": f"All of clip {number}."}]
        lines.append({"video_id": f"clip-{number}", "video_path": name, "captions": captions})
    (folder / "sharegpt4video_40k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def m3it(folder: Path) -> None:
    """Pictures inside the lines."""
    below = folder / "data" / "vqa" / "vqav2"
    below.mkdir(parents=True)
    (below / "instructions.json").write_text(json.dumps(["Answer the question about the image."]))
    lines = [{"instruction": "Answer the question about the image.", "inputs": "Which number is it?",
              "outputs": str(number), "image_base64_str": [base64.b64encode(picture(number)).decode()]}
             for number in range(30)]
    (below / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for make in (llava_mix_665k, sharegpt4video, m3it):
        make(folder / "downloads" / make.__name__)
    return folder


@pytest.fixture(scope="module")
def said(follow: Callable[..., list[str]], folder: Path) -> list[str]:
    return follow("from-a-dataset-to-a-training-run.md", folder)


def test_three_datasets_become_shards_and_one_missing_picture_is_listed(said: list[str], folder: Path) -> None:
    counts = {path.parent.name: json.loads(path.read_text())["shards"][0]["samples"]
              for path in folder.glob("shards/*/index.json")}
    assert counts == {"llava_mix_665k": 23, "sharegpt4video": 5, "vqav2": 30}
    skipped = [json.loads(line) for line in (folder / "shards/llava_mix_665k/skipped.jsonl").read_text().splitlines()]
    assert [entry["reason"] for entry in skipped] == ["missing"]


def test_they_are_checked_counted_and_shown(said: list[str], folder: Path) -> None:
    assert said[1].count("nothing") == 3 and "hours of video" in said[1]
    page = (folder / "preview.html").read_text()
    assert "All of clip" in page and "Which number is it?" in page and page.count("data:image/jpeg") > 20


def test_the_plan_tells_visits_and_steps(said: list[str]) -> None:
    figures = {line.split()[0]: line.split()[1:4] for line in said[2].splitlines()
               if line.split()[:1] and line.split()[0] in ("llava_mix_665k", "vqav2", "sharegpt4video", "all")}
    assert figures["vqav2"] == ["20", "×1", "20"] and figures["sharegpt4video"] == ["5", "×2", "10"]
    assert figures["all"][2] == "53"


def test_a_model_is_trained_on_them(said: list[str], folder: Path) -> None:
    steps = int(re.search(r"steps\s+(\d+)", said[2])[1])  # type: ignore[index]
    assert f"vision {steps}/{steps}" in said[3]
    assert (folder / "runs/try/vision/model/model.safetensors").is_file()
    assert not (folder / "runs/try/vision/bad_samples.jsonl").exists()
