"""A tiny model of the real parts, and small real files to show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.model import AuroraModel
from aurora.weights.model_folder import save_model

VideoMaker = Callable[..., Path]


def tiny(**changes: Any) -> ModelConfig:
    return ModelConfig.parse({
        "vision": {"name": "siglip", "image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 2,
                   "mlp_width": 64},
        "merge": {"name": "tome"},
        "sort": {"name": "size"},
        "connector": {"name": "mlp"},
        "backbone": {"name": "rwkv6", "hidden_size": 32, "layers": 2, "head_size": 16},
        "tokenizer": {"name": "bytes"},
        "prompt": {"name": "sandwich"},
        "reader": {"name": "pyav"},
        "dtype": "float32",
        "keep_ratio": 0.5,
        "sampling": {"fps": 2.0},
    } | changes)


@pytest.fixture
def config() -> ModelConfig:
    return tiny()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    return tiny


@pytest.fixture(scope="session")
def make_model() -> Callable[..., AuroraModel]:
    """Every parameter is random: an untrained RWKV starts with zeros that would hide what depends on what."""

    def make(**changes: Any) -> AuroraModel:
        torch.manual_seed(0)
        model = build_model(tiny(**changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., AuroraModel]) -> AuroraModel:
    return make_model()


@pytest.fixture(scope="session")
def model_folder(model: AuroraModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, tiny(), folder)
    return folder


@pytest.fixture(scope="session")
def endless_folder(make_model: Callable[..., AuroraModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never stops: one of "a" and "b", whose logits are opposite numbers, is likelier than all others."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    model = make_model()
    with torch.no_grad():
        head = model.backbone.head.weight
        head.zero_()
        head[ord("a") + 1], head[ord("b") + 1] = 1.0, -1.0
    save_model(model, tiny(), folder)
    return folder


def write_video(path: Path, frames: int, *, fps: int = 8, size: tuple[int, int] = (48, 32), seed: int = 0) -> Path:
    """An H.264 file of a square that moves over a background of one colour."""
    rng = np.random.default_rng(seed)
    background, colour = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.tile(background, (size[1], size[0], 1))
            left = (number * 2) % (size[0] - 8)
            image[8:16, left : left + 8] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video() -> VideoMaker:
    return write_video


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 40)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return path
