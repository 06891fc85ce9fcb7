import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_pieces import RECURRENT
from aurora.testing.training import tiny_config

from aurora.assemble import build_model
from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.training.distributed.sequence_parallel import read_together

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def differences():
    done = subprocess.run([sys.executable, "-W", "error", str(FOLDER / "read_together.py")], capture_output=True,
                          text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(FOLDER.parents[2]), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("backbone", RECURRENT)
def test_ranks_that_share_a_row_learn_what_one_does(backbone, processes, differences):
    loss, gradient = differences[f"{backbone} on {processes}"]
    assert loss < 1e-6 and gradient < 1e-6


def test_a_backbone_that_hides_its_states_is_refused():
    backbone = {"name": "rwkv6", "hidden_size": 16, "layers": 1, "head_size": 8}
    model = build_model(ModelConfig.parse({**tiny_config("run"), "backbone": backbone}))
    model.backbone.block_class = type(model.backbone.ln_out)
    with pytest.raises(AuroraError, match="blocks of RWKV6 do not take and give their state"):
        read_together(model.backbone, None)
