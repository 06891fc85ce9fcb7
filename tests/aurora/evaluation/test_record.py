"""What a result says of where it was made."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from aurora.evaluation import record
from aurora.evaluation.record import describe, facts, versions
from aurora.version import VERSION


def test_facts_can_be_written_as_json_and_stay_the_same() -> None:
    assert json.loads(json.dumps(facts())) == facts()


def test_facts_name_the_versions_that_scores_depend_on() -> None:
    found = facts()["versions"]
    assert found["aurora"] == VERSION
    assert found["torch"] == torch.__version__
    assert {"python", "transformers", "torchmetrics", "numpy"} <= found.keys()


def test_facts_name_the_machine() -> None:
    found = facts("cpu")["hardware"]
    assert found["device"] == "cpu"
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["cpu"]


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PACKAGES", ("torch", "no-such-package"))
    assert "no-such-package" not in versions()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one commit, as the place of this code."""
    monkeypatch.setattr(record, "_ROOT", tmp_path)
    (tmp_path / "code.py").write_text("print(1)\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.process
def test_the_revision_says_whether_files_were_changed(clone: Path) -> None:
    commit = versions()["revision"]
    assert len(commit) == 40
    (clone / "code.py").write_text("print(2)\n")
    assert versions()["revision"] == commit + "+changes"


@pytest.mark.process
def test_an_installed_package_inside_of_another_clone_has_no_revision(clone: Path, monkeypatch: pytest.MonkeyPatch
                                                                      ) -> None:
    inside = clone / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(record, "_ROOT", inside)
    assert "revision" not in versions()


@pytest.mark.parametrize(("hardware", "words"), [
    ({"device": "NVIDIA H200", "cpu": "Xeon", "cores": 16}, "NVIDIA H200"),
    ({"device": "cpu", "cpu": "Xeon", "cores": 2}, "Xeon, 2 cores"),
    ({}, "CPU"),
])
def test_hardware_is_described_in_a_few_words(hardware: dict[str, object], words: str) -> None:
    assert describe(hardware) == words
