"""Live sources: real files that grow, and real servers on loopback that add, cut and come back. A frame's brightness
tells its number."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.inference import live
from aurora.inference.live import LiveEvent, LiveSource, label
from aurora.inference.live_decoder import Timed, sample_live
from aurora.interfaces import Sampling
from aurora.registry import READER

STEP, RATE = 6, 10
NO_TABLE = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
Respond = Callable[[BaseHTTPRequestHandler, int], None]
process = pytest.mark.process


def film(frames: int = 40, container: str = "mpegts", first: int = 0, codec: str = "libx264",
         options: dict[str, str] | None = None, noise: int = 0) -> bytes:
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(buffer, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=RATE, options={"g": "10", "bf": "0"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(first, first + frames):
            grey = number * STEP % 256 + rng.integers(0, noise + 1, (48, 64, 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey.astype(np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def number(image: np.ndarray) -> int:
    return round(float(image.mean()) / STEP)


@contextmanager
def server(respond: Respond) -> Iterator[str]:
    """A web server; `respond` is called with a request and how many came before it for the same path."""
    seen: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            before = seen.get(path, 0)
            seen[path] = before + 1
            respond(self, before)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads, web.block_on_close = True, False
        web.handle_error = lambda *_: None  # a client that has left
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{web.server_port}"
        finally:
            web.shutdown()


def send(request: BaseHTTPRequestHandler, body: bytes, kind: str = "video/mp2t", *, length: bool = False) -> None:
    """An answer that ends with the connection, as streams do, unless it says how long it is."""
    request.send_response(200)
    request.send_header("Content-Type", kind)
    if length:
        request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


class Events(list[LiveEvent]):
    """What a source said, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def __call__(self, event: LiveEvent) -> None:
        with self.changed:
            self.append(event)
            self.changed.notify_all()

    def wait(self, kind: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: kind in self.kinds, timeout=120)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self]


@process
@pytest.mark.parametrize(("container", "options", "fps"), [
    ("mp4", NO_TABLE, 4.0), ("mpegts", {}, 1.0), ("mpegts", {}, 25.0), ("matroska", {}, 4.0)])
def test_a_file_watched_while_it_is_written_gives_the_frames_of_the_finished_one(tmp_path, container, options, fps):
    data, path = film(container=container, options=options), tmp_path / "growing"
    path.write_bytes(data[:3 * len(data) // 4])
    seen = []
    with LiveSource(path, fps=fps, idle_seconds=600) as source:
        for seconds, image in source:
            if not seen:
                with path.open("ab") as file:
                    file.write(data[3 * len(data) // 4:])
                os.utime(path, (0, 0))  # nobody has written for long
            seen.append((seconds, image))
    finished = list(READER.build({"name": "pyav"}).read(str(path), Sampling(fps=fps)))
    assert [seconds for seconds, _ in seen] == [pytest.approx(seconds) for seconds, _ in finished]
    assert [number(image) for _, image in seen] == [number(image) for _, image in finished]
    assert source.dropped == 0


@process
def test_an_ordinary_mp4_is_read_when_it_is_finished_and_refused_while_it_is_written(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(film(container="mp4", noise=200))  # more than FFmpeg holds in memory
    later = time.time() + 3600
    os.utime(path, (later, later))
    with pytest.raises(AuroraError, match="has to be fragmented while it is written"):
        list(LiveSource(path, idle_seconds=0.5))
    os.utime(path, (0, 0))
    assert [seconds for seconds, _ in LiveSource(path)] == [0.0, 1.0, 2.0, 3.0]


@process
def test_frames_of_a_pipe_wait_until_they_are_taken():
    code = ("import sys; from aurora.inference.live import LiveSource\n"
            "source = LiveSource('-', fps=10, queue_frames=2)\n"
            "print(len(list(source)), source.dropped)")
    done = subprocess.run([sys.executable, "-c", code], input=film(), capture_output=True, check=True)
    assert done.stdout.split() == [b"40", b"0"]


@process
@pytest.mark.slow
def test_a_playlist_is_followed_while_segments_are_added_until_it_says_that_it_ends():
    def respond(request: BaseHTTPRequestHandler, before: int) -> None:
        if request.path.endswith(".m3u8"):
            shown, end = min(2 + before, 4), "#EXT-X-ENDLIST\n" if before >= 4 else ""
            parts = "".join(f"#EXTINF:1.0,\npart{part}.ts\n" for part in range(shown))
            text = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n{parts}{end}"
            send(request, text.encode(), "application/vnd.apple.mpegurl", length=True)
        else:
            part = int(request.path.rpartition("part")[2].partition(".")[0])
            send(request, segments[part], length=True)

    segments = [segment(part) for part in range(4)]
    events = Events()
    with server(respond) as address:
        seen = [(seconds, number(image)) for seconds, image in
                LiveSource(f"{address}/live.m3u8", fps=5, give_up_seconds=30, on_event=events)]
    # it begins with the newest segment that there was, the second
    assert [image for _, image in seen] == list(range(10, 40, 2))
    assert [seconds for seconds, _ in seen] == [pytest.approx(0.2 * at, abs=0.02) for at in range(15)]
    assert (events.kinds[0], events.kinds[-1]) == ("opened", "ended")


def segment(part: int) -> bytes:
    """One second of a stream, whose clock goes on from the segment before."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for at in range(10 * part, 10 * part + 10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), at * STEP, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


@process
@pytest.mark.parametrize("entry", ["file://{file}", "{file}", "concat:{file}", "subfile,,start,0,end,0,,:{file}"])
def test_a_playlist_never_opens_a_file_of_this_machine(tmp_path, entry):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(film())
    text = ("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n" + entry.format(file=secret) + "\n#EXT-X-ENDLIST\n")

    def respond(request: BaseHTTPRequestHandler, _: int) -> None:
        if request.path == "/live.m3u8":
            send(request, text.encode(), "application/vnd.apple.mpegurl", length=True)
        else:
            request.send_error(404)

    with server(respond) as address, pytest.raises(AuroraError, match="cannot be watched"):
        list(LiveSource(f"{address}/live.m3u8", stall_seconds=5))


@process
def test_what_ffmpeg_cannot_decode_is_not_a_crash(tmp_path, video):
    path = tmp_path / "broken.mp4"
    path.write_bytes(video.read_bytes()[:700])
    with pytest.raises(AuroraError, match=r"broken\.mp4 cannot be watched: (?!its decoder crashed)"):
        list(LiveSource(path, idle_seconds=0.2))

    def page(request: BaseHTTPRequestHandler, _: int) -> None:
        send(request, b"<!doctype html><p>Not a stream</p>", "text/html", length=True)

    with server(page) as address, pytest.raises(AuroraError, match=r"cannot be watched: (?!its decoder crashed)"):
        list(LiveSource(f"{address}/live.m3u8", stall_seconds=5))


@process
def test_a_playlist_in_a_file_is_not_opened(tmp_path):
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\nfilm.ts\n")
    with pytest.raises(AuroraError, match="no known image or video"):
        list(LiveSource(path, idle_seconds=0.2))


@process
def test_a_stream_that_breaks_off_is_picked_up_and_its_seconds_go_on():
    def respond(request: BaseHTTPRequestHandler, before: int) -> None:
        if before < 2:
            send(request, film(10, first=10 * before))
        else:
            request.send_error(404)

    events = Events()
    with server(respond) as address:
        source = LiveSource(address, fps=10, give_up_seconds=3.0, on_event=events)
        seen = []
        with pytest.raises(AuroraError, match=r"did not come back within 3 s: .*; 20 frames were read, up to"):
            for item in source:
                seen.append(item)
    assert [number(image) for _, image in seen] == list(range(20))
    seconds = [seconds for seconds, _ in seen]
    assert seconds == sorted(seconds) and seconds[10] - seconds[9] >= 0.5
    assert events.kinds == ["opened", "lost", "resumed", "lost"]
    assert [event.seconds for event in events][1:3] == [seconds[9], seconds[10]]
    assert source.reconnects == 1


@process
def test_the_newest_frames_of_a_stream_are_kept_when_nobody_takes_them():
    events = Events()
    with tcp([film()]) as address, LiveSource(address, fps=10, queue_frames=4, on_event=events) as source:
        frames = iter(source)
        first = number(next(frames)[1])  # of the newest four, where all had come before it was taken
        events.wait("lost")
        kept = range(max(36, first + 1), 40)
        assert [number(image) for _, image in (next(frames) for _ in kept)] == [*kept]
        assert source.frames == 40
        assert source.dropped == 39 - len(kept)


@contextmanager
def tcp(answers: list[bytes]) -> Iterator[str]:
    """Sends each caller one of the answers and hangs up; later ones are kept waiting."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def serve() -> None:
            left = list(answers)
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                if left:
                    connection.sendall(left.pop(0))
                    connection.close()
                else:
                    held.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@process
def test_a_silent_stream_is_closed_from_another_thread():
    with tcp([]) as address:
        source = LiveSource(address, stall_seconds=600)
        taken: list[object] = []
        watching = threading.Thread(target=lambda: taken.extend(source))
        watching.start()
        while source._process is None:
            time.sleep(0.01)
        source.close()
        watching.join()
        assert taken == []
        assert source._process.poll() is not None


@process
def test_a_stream_that_stays_silent_from_the_beginning_is_an_error():
    with tcp([]) as address, pytest.raises(AuroraError, match=r"cannot be watched: nothing came for 1 s"):
        list(LiveSource(address, stall_seconds=1))


@process
def test_a_decoder_that_crashes_is_replaced():
    def respond(request: BaseHTTPRequestHandler, before: int) -> None:
        send(request, film(10, first=10 * before))
        hang.wait(60)

    hang, events = threading.Event(), Events()
    with server(respond) as address, LiveSource(address, fps=10, on_event=events) as source:
        frames = iter(source)
        next(frames)
        os.kill(source._process.pid, signal.SIGSEGV)
        events.wait("resumed")
        hang.set()
        assert next(event.detail for event in events if event.kind == "lost") == "its decoder crashed"


@process
def test_pictures_of_a_camera_server_are_timed_by_the_clock():
    def respond(request: BaseHTTPRequestHandler, before: int) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        request.end_headers()
        for at, picture in enumerate(pictures):
            request.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
                                + picture + b"\r\n")
            if at == 5:
                taken.wait(120)
                time.sleep(0.5)

    taken = threading.Event()
    comment = b"\xff\xfe\x10\x00" + bytes(0xffe)  # FFmpeg waits for 2,048 bytes, less than any camera's picture has
    pictures = [b"\xff\xd8" + comment + part for part in film(8, "mjpeg", codec="mjpeg").split(b"\xff\xd8")[1:]]
    with server(respond) as address, LiveSource(address, fps=1000) as source:
        seen = []
        for seconds, image in source:
            seen.append((number(image), seconds))
            if len(seen) == 6:
                taken.set()
            if len(seen) == 8:
                break
    assert [image for image, _ in seen] == list(range(8))
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(seen))
    assert seen[6][1] - seen[5][1] >= 0.5  # FFmpeg would have made up 0.04


@process
def test_a_camera_over_rtsp_is_watched():
    with rtsp(film()) as address, LiveSource(f"{address}/camera", fps=5) as source:
        seen = [number(image) for (_, image), _ in zip(source, range(8), strict=False)]
    assert seen == list(range(seen[0], seen[0] + 16, 2))


@contextmanager
def rtsp(stream: bytes) -> Iterator[str]:
    """A server that speaks as much RTSP as a player needs, and sends a transport stream over the same connection."""
    text = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
    answers = {"OPTIONS": "Public: DESCRIBE, SETUP, PLAY\r\n", "PLAY": "Session: 1\r\n",
               "SETUP": "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n",
               "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(text)}\r\n"}

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rwb") as file:
            while request := file.readline().decode().split():
                headers = dict(line.decode().strip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
                method = request[0]
                file.write((f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{answers[method]}\r\n"
                            f"{text if method == 'DESCRIBE' else ''}").encode())
                file.flush()
                if method == "PLAY":
                    break
            for at in range(0, len(stream), 1316):
                packet = b"\x80\x21" + (at // 1316).to_bytes(2, "big") + bytes(8) + stream[at:at + 1316]
                file.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            file.flush()
            over.wait(60)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"rtsp://user:password@127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()


@process
def test_a_transport_stream_over_udp_is_watched():
    def send_on() -> None:
        stream = film(200)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for at in range(0, len(stream), 1316):
                sender.sendto(stream[at:at + 1316], ("127.0.0.1", port))
                if over.wait(0.002):
                    return

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over = threading.Event()

    def send_again() -> None:
        while not over.is_set():
            send_on()

    sending = threading.Thread(target=send_again)
    sending.start()
    try:
        with LiveSource(f"udp://127.0.0.1:{port}", fps=10) as source:
            seen = [number(image) for (_, image), _ in zip(source, range(5), strict=False)]
    finally:
        over.set()
        sending.join()
    assert len(seen) == 5


@process
def test_a_device_is_opened_by_its_driver(monkeypatch):
    """There is no camera here: FFmpeg's own test picture is a device too, and is opened the same way."""
    made = {"source": "testsrc=size=64x48:rate=10", "opens": "device", "format": "lavfi"}
    monkeypatch.setattr(live, "_opening", lambda *_: made)
    with LiveSource("/dev/video0", fps=5) as source:
        seen = [(seconds, image.shape) for (seconds, image), _ in zip(source, range(3), strict=False)]
    assert seen == [(0.0, (48, 64, 3)), (0.2, (48, 64, 3)), (0.4, (48, 64, 3))]


@process
def test_the_decoder_ends_with_the_one_who_watches():
    code = ("import sys; from aurora.inference.live import LiveSource\n"
            "source = LiveSource(sys.argv[1], fps=10)\n"
            "for _ in source: print(source._process.pid, flush=True)")
    over = threading.Event()

    def respond(request: BaseHTTPRequestHandler, before: int) -> None:
        request.send_response(200)
        request.end_headers()
        stream = film(200)
        for at in range(0, len(stream), 1880):
            request.wfile.write(stream[at:at + 1880])
            if over.wait(0.02):
                return

    with server(respond) as address, subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE
                                                      ) as watching:
        decoder = int(watching.stdout.readline())
        watching.kill()
        watching.wait()
        try:
            while Path(f"/proc/{decoder}").exists() and "Z" not in Path(f"/proc/{decoder}/stat").read_text().split()[2]:
                time.sleep(0.05)
        except (FileNotFoundError, ProcessLookupError):
            pass
        over.set()


def test_a_live_source_is_watched_once():
    source = LiveSource("tcp://127.0.0.1:9")
    source.close()
    with pytest.raises(AuroraError, match="watched already"):
        next(iter(source))


@pytest.mark.parametrize(("given", "message"), [
    ("ftp://host/film.mp4", "not opened by 'ftp'"), ("htp://host/a.m3u8", "Did you mean 'http'"),
    ("concat:a.ts|b.ts", "no such file, camera or address"), ("/dev/null", "not a camera"),
    ("missing.mp4", "no such file"), ("file:///etc/passwd", "not opened by 'file'"),
    ("ftp://user:secret@host/film", "ftp://host/film: a live source"),
])
def test_what_is_no_live_source_is_refused(given, message):
    with pytest.raises(AuroraError, match=message) as caught:
        LiveSource(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("option", "given"), [("fps", 0), ("fps", 1001), ("fps", float("nan")), ("queue_frames", 0),
                                               ("queue_frames", 1.5), ("stall_seconds", -1), ("transport", "quic"),
                                               ("give_up_seconds", float("inf")), ("threads", 0)])
def test_an_option_that_cannot_be_is_refused(option, given):
    with pytest.raises(AuroraError, match=option):
        LiveSource("rtsp://host/", **{option: given})


@pytest.mark.parametrize(("source", "shown"), [
    ("rtsp://user:p@ss@camera:554/a?b=c@d", "rtsp://camera:554/a?b=c@d"), ("https://host/a@b", "https://host/a@b"),
    ("film.mp4", "film.mp4"),
])
def test_messages_do_not_show_passwords(source, shown):
    assert label(source) == shown


@pytest.mark.parametrize(("fps", "kept"), [(1, [0, 10, 20]), (10, [*range(25)]), (100, [*range(25)]),
                                           (4, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23])])
def test_the_first_frame_after_every_moment_of_a_stream_is_kept(fps, kept):
    frames = [Timed(number / RATE, 1 / RATE, number) for number in range(25)]
    assert [frame for _, frame in sample_live(frames, fps)] == kept
