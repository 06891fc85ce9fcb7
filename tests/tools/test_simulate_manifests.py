import runpy
from pathlib import Path

import pytest
import yaml

from aurora.images import ImagePreparation
from aurora.interfaces import VisualLayout
from aurora.registry import DATA, MERGE, PROMPT, READER, TOKENIZER
from datamodules.plan.epoch import schedule

TOOL = Path(__file__).parents[2] / "tools" / "simulate_manifests.py"


def test_a_simulated_corpus_can_be_planned_and_scheduled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(TOOL), str(tmp_path), "--samples", "3000", "--datasets", "3",
                                     "--tokenizer", "bytes", "--prompts", "sandwich"])
    runpy.run_path(str(TOOL), run_name="__main__")
    layout = VisualLayout(ImagePreparation(384, 16), MERGE.build({"name": "tome"}), depth=23, keep_ratio=0.1)
    data = DATA.build(
        {"name": "webdataset", "root": str(tmp_path), "row_tokens": 4096, "row_frames": 64, "frames": 12,
         "global_batch": 512}, mixture=yaml.safe_load((tmp_path / "mixture.yaml").read_text()), layout=layout,
        prompt=PROMPT.build({"name": "sandwich"}), tokenizer=TOKENIZER.build({"name": "bytes"}),
        reader=READER.build({"name": "pyav"}))
    rows = schedule(data.plan, position=(0, 0, 0), steps=data.total_steps(), rank=0, world=1)
    read = [sample for row in rows for sample in row.samples]
    assert abs(len(data.corpus.tokens) - 3000) <= 3 and len(read) == len(set(read)) == data.plan.samples
