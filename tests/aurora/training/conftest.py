import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import tiny_training  # noqa: E402

tiny_training.register()


@pytest.fixture
def start_process(tmp_path):
    """Starts training in a process of its own and kills what is left of it in the end."""
    started = []

    def start(config, **environment):
        path = tmp_path / f"config-{len(started)}.json"
        path.write_text(json.dumps(config))
        root = str(FOLDER.parents[2])
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(FOLDER / "tiny_training.py"), str(path)],
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
