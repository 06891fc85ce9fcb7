"""What `aurora ask` shows on a real terminal: a pseudo-terminal, and an emulator that reads what is written to it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest

from aurora.commands.ask import _reporting
from aurora.inference.visuals import Progress
from aurora.interfaces import Sampling

ROOT = Path(__file__).parents[3]


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, process: subprocess.Popen[bytes], leader: int, columns: int) -> None:
        self.process, self.leader = process, leader
        self.screen = pyte.Screen(columns, 30)
        self.written = b""
        self.screens: list[list[str]] = []  # all that there were
        self._stream = pyte.ByteStream(self.screen)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def shown(self) -> list[str]:
        """Every line that ever stood there."""
        return [line for screen in self.screens for line in screen]

    def read(self, until: str | None = None) -> list[str]:
        """The lines at the end, or once a text stands there."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (until and until in "\n".join(self.lines)):
            if select.select([self.leader], [], [], 1.0)[0]:
                try:
                    data = os.read(self.leader, 65536)
                except OSError:  # Linux's way to say that the other end is closed
                    break
                if not data:
                    break
                self.written += data
                self._stream.feed(data)
                self.screens.append(self.lines)
        return self.lines

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())


@contextmanager
def terminal(*command: str | Path, columns: int = 100, **environment: str) -> Iterator[Terminal]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    # the size of another terminal
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdin=follower, stdout=follower,
                               stderr=follower, env={**inherited, "TERM": "xterm", **environment},
                               start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(follower)
    try:
        yield Terminal(process, leader, columns)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def emulated(text: str, columns: int) -> list[str]:
    screen = pyte.Screen(columns, 30)
    visible = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
    pyte.Stream(screen).feed(visible.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display if line.strip()]


# ---- `aurora ask`


@pytest.fixture
def ask(model_folder: Path, video: Path) -> tuple[str | Path, ...]:
    return ("-m", "aurora", "ask", video, "--model", model_folder)


@pytest.mark.slow
def test_waiting_and_what_is_left_out_are_said_and_the_answer_stays(ask, video: Path) -> None:
    asked = (*ask, "What is this?", "--max-new-tokens", "12", "--fps", "8", "--max-frames", "5")
    piped = subprocess.run([sys.executable, *map(str, asked)], cwd=ROOT, capture_output=True, timeout=120)
    answer, note = piped.stdout.decode(), piped.stderr.decode()
    assert answer.strip() and note == f"{video.name}: 5 frames, one every 1.22 s; --max-frames reads more\n"
    with terminal(*asked) as seen:
        assert "0:00:00 loading" in seen.read(until="loading")[0]
        lines = seen.read()
        assert lines[-len(emulated(answer, 100)) :] == emulated(answer, 100)
        assert "".join("".join(lines).split()).startswith("".join(note.split()))


class Said(list[str]):
    say = list.append


def test_reading_says_which_frame_of_how_many_and_when(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said()
    report = _reporting(Sampling(fps=1.0, max_frames=64), said)
    report(Progress("long.mp4", 12, [number * 28.5 for number in range(64)]))
    report(Progress("long.mp4", 13, [number * 280.0 for number in range(64)]))
    report(Progress("whole.mp4", 64, [float(number) for number in range(64)]))
    report(Progress("picture.png", 1, []))
    assert said == ["frame 12 of 64 (5:13 of 29:55) of long.mp4", "frame 13 of 64 (56:00 of 4:54:00) of long.mp4",
                    "frame 64 of 64 (1:03 of 1:03) of whole.mp4", "reading picture.png"]
    assert capsys.readouterr().err == "long.mp4: 64 frames, one every 28.5 s; --max-frames reads more\n"


@pytest.mark.slow
def test_a_conversation_takes_wide_characters(ask) -> None:
    with terminal(*ask, "--chat", "--max-new-tokens", "3", columns=30) as seen:
        seen.read(until=">")
        seen.type("这是什么?\n")
        seen.read(until="\n>")
        seen.type("\x03")
        lines = seen.read()
    assert lines[0].replace(" ", "") == ">这是什么?" and lines[-2:] == ["> ^C", "aurora: interrupted"]
    assert seen.process.returncode == 130


@pytest.mark.slow
def test_an_interrupted_command_says_so_on_a_line_of_its_own(endless_folder: Path, video: Path) -> None:
    asked = ("ask", video, "What?", "--model", endless_folder, "--max-new-tokens", "1000000")
    with terminal("-m", "aurora", *asked) as seen:
        seen.read(until="aaa")
        seen.type("\x03")
        lines = seen.read()
    assert seen.process.returncode == 130 and lines[-1] == "aurora: interrupted"
    assert seen.written.count(b"\x1b[?25l") == seen.written.count(b"\x1b[?25h")  # the cursor is shown again


def test_nothing_that_takes_time_is_imported_before_waiting_is_said() -> None:
    code = ("import sys, aurora.cli, aurora.commands.ask, aurora.terminal; "
            "sys.stderr.write(str({'torch', 'hydra', 'numpy', 'pydantic'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stderr == b"set()"


# ---- waiting, without a model

WAITING = """
import sys
import time
from aurora.terminal import Waiting
with Waiting("loading [the model]") as waiting:
    time.sleep(0.4)
    waiting.say("frame 10 of 10 (0:04 of 0:04) of a-file-with-a-long-name.mp4")
    time.sleep(0.4)
    sys.stderr.write("a note\\n")
    waiting.say("answering")
    waiting.stream(["一二\\x1b[2J", "三"])
"""


@pytest.mark.parametrize("columns", [100, 24])
def test_waiting_takes_one_line_and_leaves_none(columns: int) -> None:
    with terminal("-c", WAITING, columns=columns) as seen:
        lines = seen.read()
    assert [line.replace(" ", "") for line in lines] == ["anote", "一二\N{REPLACEMENT CHARACTER}[2J三"]
    waiting = [line[2:] for line in seen.shown if line.startswith(tuple("-\\|/"))]
    assert any(line.startswith("0:00:00 loading [the") for line in waiting)
    assert any(line.startswith("0:00:00 frame") for line in waiting)
    assert any(line.endswith("…") for line in waiting) == (columns == 24)
    assert max(len(screen) for screen in seen.screens) <= 2


def test_no_color_has_no_colour() -> None:
    colours = re.compile(rb"\x1b\[[\d;]*3\d[\d;]*m")
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal("-c", WAITING, **environment) as seen:
            seen.read()
        assert bool(colours.search(seen.written)) == coloured


def test_a_terminal_that_cannot_move_its_cursor_shows_no_waiting() -> None:
    with terminal("-c", WAITING, TERM="dumb") as seen:
        seen.read()
    assert b"\x1b" not in seen.written and b"loading" not in seen.written
