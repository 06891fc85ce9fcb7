import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from datamodules.shards.format import ShardSample
from tools.tiny_training import ROOT, register, tiny_config

register()


@pytest.fixture
def start_process(tmp_path):
    """Starts training in a process of its own and kills what is left of it in the end."""
    started = []

    def start(config, **environment):
        path = tmp_path / f"config-{len(started)}.json"
        path.write_text(json.dumps(config))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tools.tiny_training", str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


# ---- real shards


WORDS = ("red", "green", "blue", "one", "two", "a square", "a circle")


@pytest.fixture(scope="session")
def sample():
    """The sample of a number: a picture with a question."""
    return _sample


@pytest.fixture(scope="session")
def config_for():
    """The config of a run on a folder with the dataset `pictures`."""
    return _config_for


def _sample(number):
    pixels = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), number * 10, np.uint8)).save(pixels, "png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"},
             {"from": "gpt", "value": f"{WORDS[number % 7]} {number}"}]
    return ShardSample(f"{number:04d}", {"image": "png", "conversations": turns}, {"png": pixels.getvalue()})


def _config_for(run, root):
    config = {**tiny_config(run), "stage": "first"}
    config["data"] = {"name": "webdataset", "root": str(root), "row_tokens": 200, "row_frames": 4, "frames": 2,
                      "workers": 0}
    config["stages"]["first"].update(mixture={"pictures": 2}, global_batch=6, epochs=2)
    return config
