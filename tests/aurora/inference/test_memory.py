"""Peak memory of a whole process, because what a reader or an allocator holds is part of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aurora.weights.model_folder import save_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ASK = """
import resource, sys, torch
torch.set_num_threads(1)
from aurora.cli import main
status = main(["ask", sys.argv[1], "What moves?", "--model", sys.argv[2], "--fps", "8", "--max-new-tokens", "4"])
sys.stderr.write(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
sys.exit(status)
"""


def peak_kib(video: Path, model: Path) -> int:
    done = subprocess.run([sys.executable, "-c", ASK, str(video), str(model)], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=300)
    return int(done.stderr.rpartition("peak ")[2])


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_4096_frame_video_takes_the_memory_of_a_256_frame_one(make_model, make_config, make_video, tmp_path: Path
                                                                ) -> None:
    save_model(make_model(), make_config(keep_ratio=0.25), tmp_path / "model")
    peaks = [peak_kib(make_video(tmp_path / f"{frames}.mp4", frames, size=(96, 96)), tmp_path / "model")
             for frames in (256, 4096)]
    assert peaks[1] <= 1.05 * peaks[0], peaks
