"""What `aurora ask` leaves on a real terminal: a pseudo-terminal, and an emulator that reads what is written to it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[3]


def screen_of(*arguments: str | Path, columns: int = 100, rows: int = 30) -> list[str]:
    """The lines that stand on a terminal after a command has ended."""
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "aurora.cli", *map(str, arguments)], cwd=ROOT, stdin=follower,
                               stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 1.0)[0]:
            try:
                data = os.read(leader, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not data:
                break
            stream.feed(data)
    os.close(leader)
    assert process.wait(timeout=60) == 0
    return [line.rstrip() for line in screen.display if line.strip()]


def test_the_answer_stays_on_the_terminal(model_folder: Path, video: Path) -> None:
    asked = ("ask", video, "What is this?", "--model", model_folder, "--max-new-tokens", "12")
    piped = subprocess.run([sys.executable, "-m", "aurora.cli", *map(str, asked)], cwd=ROOT, capture_output=True,
                           timeout=120)
    answer = piped.stdout.decode()
    assert answer.strip()
    emulated = pyte.Screen(100, 30)
    pyte.ByteStream(emulated).feed(answer.replace("\n", "\r\n").encode())
    assert screen_of(*asked) == [line.rstrip() for line in emulated.display if line.strip()]
