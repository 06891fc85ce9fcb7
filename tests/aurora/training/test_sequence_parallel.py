import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.training.sequence_parallel import read_together
from tools.tiny_training import ROOT, tiny_model

RECURRENT = [name for name in BACKBONE.known() if name not in ("hf", "transformer")]


@pytest.fixture(scope="module")
def differences():
    script = Path(__file__).with_name("read_together.py")
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("backbone", RECURRENT)
def test_ranks_that_share_a_row_learn_what_one_does(backbone, processes, differences):
    loss, gradient = differences[f"{backbone} on {processes}"]
    assert loss < 1e-6 and gradient < 1e-6


def test_a_backbone_that_hides_its_states_is_refused():
    model = tiny_model()
    model.backbone.block_class = type(model.backbone.ln_out)
    with pytest.raises(AuroraError, match="blocks of RWKV6 do not take and give their state"):
        read_together(model.backbone, None)
