"""Pages of docs/ that are run word for word: their files are written, their commands are run, outside of the clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FILES = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

Follow = Callable[..., list[str]]


@pytest.fixture(scope="module")
def follow() -> Follow:
    """What each block of commands of a page prints in a folder."""

    def follow(page: str, folder: Path, **environment: str) -> list[str]:
        text = (DOCS / page).read_text(encoding="utf-8")
        for name, content in FILES.findall(text):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        surroundings = {**os.environ, "PATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment}
        return [_run(commands, folder, surroundings) for commands in COMMANDS.findall(text)]

    return follow


def _run(commands: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert done.returncode == 0, f"{commands}\n{done.stdout}"
    return done.stdout
