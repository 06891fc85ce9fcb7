import json
import os
import subprocess
import sys

import pytest

from aurora.testing.training import ROOT, register

register()


@pytest.fixture
def start_process(tmp_path):
    """Starts training in a process of its own and kills what is left of it in the end."""
    started = []

    def start(config, **environment):
        path = tmp_path / f"config-{len(started)}.json"
        path.write_text(json.dumps(config))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "aurora.testing.training", str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
