"""The page "Add your own linear RNN", word for word: its files are written, its commands are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "add-your-own-linear-rnn.md"
FILES = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def offline(folder: Path) -> dict[str, str]:
    """An environment in which pip installs beside the packages that are there, and asks no server."""
    installed = folder / "installed"
    settings = {"TARGET": str(installed), "NO_DEPS": "1", "NO_INDEX": "1", "NO_BUILD_ISOLATION": "0",
                "DISABLE_PIP_VERSION_CHECK": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **{f"PIP_{key}": value for key, value in settings.items()}, "PATH": path,
            "PYTHONPATH": str(installed), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block of commands prints, outside of this repository."""
    folder = tmp_path_factory.mktemp("page")
    page = PAGE.read_text(encoding="utf-8")
    for name, content in FILES.findall(page):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    printed = []
    for commands in COMMANDS.findall(page):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=offline(folder), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        printed.append(done.stdout)
    return printed


def test_the_package_installs_and_keeps_the_contract(said: list[str]) -> None:
    assert "Successfully installed aurora-mingru" in said[0]
    assert re.search(r"\b2\d passed", said[0])


def test_the_backbone_is_listed_with_its_options(said: list[str]) -> None:
    assert "minGRU: the smallest gated linear RNN." in said[1] and "hidden_size=512  layers=12" in said[1]


def test_it_trains_and_answers(said: list[str]) -> None:
    assert "language_video" in said[2] and "2/2" in said[2]
