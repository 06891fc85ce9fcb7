"""Runs commands in a folder, and draws what a terminal shows of them as SVG: the pictures of the docs.

    python -m tools.draw_terminal docs/films.svg --folder FOLDER 'aurora ask film.mp4 "…"' 'aurora ask film.aurora "…"'

What a command writes is what it really says; its own seconds are not changed.
"""

import argparse
import io
import os
import pty
import re
import subprocess
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 96, 60
# rich's own format loads fonts from the web, which a picture of the docs must not do
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
    font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
<rect fill="#1b1f24" width="100%" height="100%" rx="8" />
<g transform="translate(9, 9)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--folder", type=Path, required=True, help="where the commands run")
    options = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for number, command in enumerate(options.commands):
        console.print(Text(("" if number == 0 else "\n") + "$ " + command, style="bold"))
        for line in shown(command, options.folder):
            console.print(Text(line))
    options.picture.write_text(console.export_svg(title="", code_format=FORMAT, unique_id=options.picture.stem))


def shown(command: str, folder: Path) -> list[str]:
    """The lines that stand on a terminal when the command has ended."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
    process = subprocess.Popen(["bash", "-c", command], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
                               env=environment)
    os.close(theirs)
    while True:
        try:
            written = os.read(ours, 1 << 16)
        except OSError:  # Linux says so when the terminal was closed at the other end
            break
        if not written:
            break
        stream.feed(re.sub(rb"(?<!\r)\n", b"\r\n", written))
    process.wait()
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


if __name__ == "__main__":
    main()
