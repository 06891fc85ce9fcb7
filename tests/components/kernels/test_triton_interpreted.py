"""The tests of the Triton kernels, by Triton's interpreter: in a process of its own, because an import decides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.kernels import _triton

pytestmark = pytest.mark.interpreter

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available() or _triton.interpreted(), reason="the tests themselves run here")
def test_the_kernels_by_the_interpreter() -> None:
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_triton_wkv*.py"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count(".") > 30, "most tests were skipped"
