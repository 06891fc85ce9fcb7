from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aurora.cli import main
from aurora.commands._options import Device
from aurora.commands.eval import _own_device, _shard
from aurora.config import part_by_option
from aurora.errors import AuroraError


@pytest.fixture
def data(video: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copyfile(video, folder / "a.mp4")
    lines = [{"id": name, "video": f"{name}.mp4", "question": "Which?", "options": ["red", "blue"], "answer": number}
             for number, name in enumerate("ab")]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_overrides_of_the_benchmark_are_told_from_those_of_the_model() -> None:
    chosen, others = part_by_option("benchmark", "mvbench", ["benchmark.subtasks=paper17", "keep_ratio=0.5",
                                                             "sampling.fps=2"])
    assert chosen == {"name": "mvbench", "subtasks": "paper17", "annotations": None, "videos": None}
    assert others == ["keep_ratio=0.5", "sampling.fps=2"]
    chosen, _ = part_by_option("benchmark", "mvbench", ["benchmark.subtasks=[action_count]"])
    assert chosen["subtasks"] == ["action_count"]


def test_the_benchmark_is_named_by_its_option() -> None:
    with pytest.raises(AuroraError, match="--benchmark mlvu"):
        part_by_option("benchmark", "blocks", ["benchmark=mlvu"])
    with pytest.raises(AuroraError, match=r"no benchmark named 'mvbensch'.*Did you mean 'mvbench'"):
        part_by_option("benchmark", "mvbensch", [])


def test_torchruns_processes_need_no_option() -> None:
    assert _shard(None, {"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    assert _shard("0/2", {"RANK": "1", "WORLD_SIZE": "4"}) == (0, 2)
    assert _shard(None, {}) == (0, 1)
    assert _own_device(Device(device="cuda"), {"LOCAL_RANK": "3"}).device == "cuda:3"
    assert _own_device(Device(device="cpu"), {"LOCAL_RANK": "3"}).device == "cpu"


def test_missing_videos_are_listed_and_counted(capsys, model_folder, data, tmp_path) -> None:
    status = main(["eval", "--data", str(data), "--model", str(model_folder), "--output", str(tmp_path / "out"),
                   "benchmark.wrong_videos=false"])
    shown = capsys.readouterr()
    assert status == 0 and "1 of 2 videos are missing; their 1 questions count as failed:\n  b.mp4" in shown.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["missing_videos"], result["failed"], result["n"]) == (["b.mp4"], 1, 2)
    assert result["benchmark"] == {"name": "blocks", "letters": False, "wrong_videos": False, "seed": 0,
                                   "choice_tokens": 16, "open_tokens": 128}


def test_shards_are_merged_without_a_model(capsys, model_folder, data, tmp_path) -> None:
    asked = ["eval", "--data", str(data), "--model", str(model_folder), "--output", str(tmp_path / "out")]
    assert main([*asked, "--shard", "1/2"]) == 0
    assert "the last process to end writes the result" in capsys.readouterr().err
    assert main(["eval", "--merge", "--output", str(tmp_path / "out")]) != 0
    assert "have no prediction yet" in capsys.readouterr().err
    assert main([*asked, "--shard", "0/2"]) == 0
    (tmp_path / "out" / "result.json").unlink()
    assert main(["eval", "--merge", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--data FOLDER is needed"),
    (["--merge"], "--merge needs --output"),
    (["--shard", "2/2"], "--data FOLDER is needed"),
])
def test_what_is_left_out_is_named(capsys, arguments, message) -> None:
    assert main(["eval", *arguments]) != 0
    assert message in capsys.readouterr().err
