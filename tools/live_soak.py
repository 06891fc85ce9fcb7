"""Watches a stream that breaks off again and again, and prints how much memory that takes.

    python tools/live_soak.py 30                   # minutes, decoding alone
    python tools/live_soak.py 5 --model FOLDER     # watched by a model, with a question every ten seconds

A second process serves an H.264 stream over HTTP in real time: it cuts the connection after 4 to 12 seconds, stays away
for up to 3, sends damaged bytes, and its clock jumps back every 20 seconds. The exit status is 1 when the memory of the
second half of the time is more than 5 % above that of the first half after a minute.
"""

from __future__ import annotations

import argparse
import io
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np

from aurora.inference.live import LiveEvent, LiveSource
from aurora.inference.standing import StandingQuestion

RATE, SECONDS = 10, 20
TOLERATED = 1.05


def main() -> int:
    """Prints a line every ten seconds and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--size", default="640x360", help="of the stream's frames (default %(default)s)")
    parser.add_argument("--model", help="a model folder that watches; `shipped` for the one that comes with Aurora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return 0
    command = [sys.executable, __file__, "0", "--serve", "--size", options.size, "--seed", str(options.seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            return soak(server.stdout.readline().strip(), options)
        finally:
            server.kill()


def soak(address: str, options: argparse.Namespace) -> int:
    """Watches until the time is over; 1 when memory has grown or the stream was given up."""
    events: list[LiveEvent] = []
    source = LiveSource(address, fps=options.fps, stall_seconds=5, on_event=events.append)
    threading.Timer(60 * options.minutes, source.close).start()
    began, shown, memory = time.monotonic(), 0.0, []
    for _ in watched(source, options.model):
        passed = time.monotonic() - began
        if passed - shown >= 10:
            shown = passed
            memory.append((passed, resident("self"), resident(str(source._process.pid))))
            print(f"{passed:6.0f} s  film {source.seconds:5.0f} s  frames {source.frames:5}  "
                  f"dropped {source.dropped:3}  damaged {source.damaged:4}  picked up {source.reconnects:4}  memory {memory[-1][1]:6.1f} MiB, "
                  f"decoder {memory[-1][2]:6.1f} MiB", flush=True)
    settled = [own for passed, own, _ in memory if passed >= min(60, 20 * options.minutes)]
    if len(settled) < 2:
        print("too short to tell whether memory grows")
        return 0
    first, second = (max(settled[:len(settled) // 2]), max(settled[len(settled) // 2:]))
    print(f"memory {first:.1f} → {second:.1f} MiB ({second / first:.3f} ×); the decoder at most "
          f"{max(decoder for *_, decoder in memory):.1f} MiB; lost {sum(e.kind == 'lost' for e in events)} times")
    return int(second > TOLERATED * first)


def watched(source: LiveSource, model: str | None) -> Iterator[object]:
    """Something for every frame: the film, where a model watches."""
    if model is None:
        yield from source
        return
    import aurora

    standing = StandingQuestion("Is there a red cube?", every_seconds=10)
    for film in aurora.load(None if model == "shipped" else model).watching(source):
        if (alert := standing.check(film)) is not None:
            print(alert)
        yield film


def resident(process: str) -> float:
    """MiB of memory that a process holds; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def serve(options: argparse.Namespace) -> None:
    """Serves the stream for ever; prints its address."""
    draw, stream, state = random.Random(options.seed), film(options.size), {"back": 0.0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if time.monotonic() < state["back"]:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            try:
                self.send(draw.uniform(4, 12))
            except OSError:
                return
            state["back"] = time.monotonic() + draw.uniform(0, 3)

        def send(self, seconds: float) -> None:
            rate, begin, at = len(stream) / SECONDS, time.monotonic(), draw.randrange(len(stream)) // 188 * 188
            sent = 0
            while (passed := time.monotonic() - begin) < seconds:
                while sent < passed * rate:
                    packet = bytearray(stream[at:at + 188])
                    if draw.random() < 0.001:
                        packet[draw.randrange(4, 188)] ^= 1 << draw.randrange(8)
                    self.wfile.write(packet)
                    sent, at = sent + 188, (at + 188) % len(stream)
                time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


def film(size: str) -> bytes:
    """A transport stream of noise that moves, 20 seconds long."""
    width, height = map(int, size.split("x"))
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    picture = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(buffer, "w", format="mpegts") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"g": "10", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(RATE * SECONDS):
            moved = np.ascontiguousarray(np.roll(picture, 4 * number, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
