"""Downloads for clients: real servers on loopback that lie, dawdle and lead elsewhere, and names that change."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import io
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aurora.serving.fetch import FetchError, FetchLimits, fetch_video, fetch_video_async, is_public

HOME = FetchLimits(hosts=["videos.test"], http=True, networks=["127.0.0.1/32"], max_seconds=60)
"""What reaches the servers of these tests: loopback, under the name `videos.test`."""


def film() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


FILM = film()


class Server:
    """Sends what `answer` makes of a request's head, and hangs up."""

    def __init__(self, answer: Callable[[str], bytes], context: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        self._answer, self._context = answer, context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._context.wrap_socket(connection, server_side=True) if self._context else connection as secured:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (piece := secured.recv(65536)):
                        return
                    head += piece
                self.requests.append(head.decode())
                for piece in self._answer(head.decode()):
                    secured.sendall(piece)
        except OSError:
            pass  # the client has seen enough

    def close(self) -> None:
        self.over.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextmanager
def serving(answer, context=None) -> Iterator[Server]:
    server = Server(answer, context)
    try:
        yield server
    finally:
        server.close()


def reply(body: bytes = FILM, status: str = "200 OK", **headers: str) -> list[bytes]:
    named = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return [f"HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n".encode(), body]


def here(_: str, __: int) -> list[str]:
    return ["127.0.0.1"]


def limits(server: Server, **changes) -> FetchLimits:
    return replace(HOME, ports=[server.port], **changes)


def refused(status: int, url: str, limits: FetchLimits, into: Path, resolver=here) -> str:
    """What is said about a download that is answered with a status and leaves nothing behind."""
    with pytest.raises(FetchError) as caught:
        fetch_video(url, limits, into, resolver=resolver)
    assert caught.value.status == status, str(caught.value)
    assert list(into.iterdir()) == []
    return str(caught.value)


def test_a_video_is_named_after_what_it_holds(tmp_path):
    with serving(lambda _: reply(Content_Type="text/html")) as server:
        path = fetch_video(f"http://videos.test:{server.port}/page.html", limits(server), tmp_path, resolver=here)
    assert path.read_bytes() == FILM
    assert path.parent == tmp_path and path.suffix == ".mp4"
    assert list(tmp_path.iterdir()) == [path]


def test_the_server_is_told_the_name_and_asked_for_plain_bytes(tmp_path):
    with serving(lambda _: reply()) as server:
        fetch_video(f"http://videos.test:{server.port}/a%20b?c=d#e", limits(server), tmp_path, resolver=here)
    head = server.requests[0].lower()
    assert f"host: videos.test:{server.port}\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert head.startswith("get /a%20b?c=d http/1.1\r\n")


@pytest.mark.parametrize("url", ["", "videos.test/film.mp4", "https://", "http://[::1", "https://user@videos.test/",
                                 "https://user:password@videos.test/film.mp4", "https:///film.mp4", "//videos.test/a",
                                 "http://xn--/film.mp4"])
def test_what_is_no_address_is_a_bad_request(tmp_path, url):
    refused(400, url, HOME, tmp_path)


@pytest.mark.parametrize("url", ["ftp://videos.test/film.mp4", "file://videos.test/etc/passwd", "http://videos.test/",
                                 "gopher://videos.test/"])
def test_https_is_all_that_is_allowed_unless_a_setting_says_more(tmp_path, url):
    assert "by https only" in refused(403, url, replace(HOME, http=False), tmp_path)


@pytest.mark.parametrize(("hosts", "host", "status"), [
    ([], "videos.test", 403), (["videos.test"], "evil.test", 403), (["videos.test"], "a.videos.test", 403),
    (["videos.test"], "notvideos.test", 403), ([".videos.test"], "notvideos.test", 403),
    (["videos.test"], "videos.test.evil.test", 403), (["videos.test"], "127.0.0.1", 403),
    (["videos.test"], "VIDEOS.test.", 502), ([".videos.test"], "a.videos.test", 502), (["*"], "any.test", 502),
])
def test_only_hosts_of_the_list_are_asked(tmp_path, hosts, host, status):
    def unknown(_: str, __: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    refused(status, f"https://{host}/film.mp4", replace(HOME, hosts=hosts), tmp_path, unknown)


def test_other_ports_are_refused(tmp_path):
    assert "port 22" in refused(403, "https://videos.test:22/", HOME, tmp_path)


PRIVATE = ["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
           "100.64.0.1", "192.0.0.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
           "255.255.255.255", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
           "ff02::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1",
           "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::1", "2001:0:1::1", "2001:db8::1", "100::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(tmp_path, address):
    limits = replace(HOME, networks=[])
    said = refused(403, "https://videos.test/film.mp4", limits, tmp_path, lambda *_: [address])
    assert address not in said
    refused(403, "https://videos.test/film.mp4", limits, tmp_path, lambda *_: ["8.8.8.8", address])


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_addresses_that_are_public_are_not(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "2130706433", "0x7f.1",
                                  "127.1", "017700000001", "localhost"])
def test_ways_to_write_loopback_are_refused_where_every_public_host_is_allowed(tmp_path, host):
    with pytest.raises(FetchError) as caught:
        fetch_video(f"https://{host}/film.mp4", FetchLimits(hosts=["*"]), tmp_path)
    assert caught.value.status == 403


def test_a_name_is_resolved_once_and_the_connection_goes_where_it_led(tmp_path):
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    with serving(lambda _: reply()) as server:
        path = fetch_video(f"http://videos.test:{server.port}/", limits(server), tmp_path,
                           resolver=lambda *_: next(answers))
    assert path.read_bytes() == FILM
    assert next(answers) == ["10.0.0.1"]


def test_a_name_that_leads_elsewhere_at_a_redirect_is_refused(tmp_path):
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    with serving(lambda _: reply(b"", "302 Found", Location="/again")) as server:
        refused(403, f"http://videos.test:{server.port}/", limits(server), tmp_path, lambda *_: next(answers))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed_where_a_request_may_go(tmp_path, status):
    def answer(head: str) -> list[bytes]:
        return reply() if "/film" in head else reply(b"", status, Location="/film.mp4")

    with serving(answer) as server:
        assert fetch_video(f"http://videos.test:{server.port}/", limits(server), tmp_path, resolver=here).exists()


@pytest.mark.parametrize(("location", "status"), [
    ("http://127.0.0.1/", 403), ("http://169.254.169.254/latest/meta-data/", 403), ("http://localhost/", 403),
    ("file:///etc/passwd", 400), ("file://videos.test/etc/passwd", 403), ("http://[::1]/", 403), ("//127.0.0.1/", 403),
    ("ftp://videos.test/", 403), ("http://evil.test/", 403), ("http://videos.test:22/", 403),
    ("http://user:password@videos.test/", 400)])
def test_a_redirect_to_anywhere_else_is_refused(tmp_path, location, status):
    with serving(lambda _: reply(b"", "302 Found", Location=location)) as server:
        refused(status, f"http://videos.test:{server.port}/film.mp4", limits(server), tmp_path)


def test_a_circle_of_redirects_ends(tmp_path):
    with serving(lambda _: reply(b"", "302 Found", Location="/")) as server:
        assert "more than 3 times" in refused(502, f"http://videos.test:{server.port}/", limits(server), tmp_path)
    assert len(server.requests) == 4


def test_a_body_that_says_it_is_too_long_is_not_read(tmp_path):
    with serving(lambda _: reply(b"", Content_Length="1001")) as server:
        refused(413, f"http://videos.test:{server.port}/", limits(server, max_bytes=1000), tmp_path)


def test_a_body_that_does_not_say_how_long_it_is_ends_at_the_limit(tmp_path):
    def answer(_: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while not server.over.is_set():
            yield FILM

    with serving(answer) as server:
        refused(413, f"http://videos.test:{server.port}/", limits(server, max_bytes=1 << 20), tmp_path)


def test_a_chunked_body_ends_at_the_limit(tmp_path):
    def answer(_: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while not server.over.is_set():
            yield b"400\r\n" + bytes(1024) + b"\r\n"

    with serving(answer) as server:
        refused(413, f"http://videos.test:{server.port}/", limits(server, max_bytes=1 << 20), tmp_path)


def test_a_body_shorter_than_it_says_is_no_video(tmp_path):
    with serving(lambda _: reply(FILM[:-1], Content_Length=str(len(FILM)))) as server:
        assert "broke off" in refused(502, f"http://videos.test:{server.port}/", limits(server), tmp_path)


def test_what_follows_a_body_is_not_read(tmp_path):
    with serving(lambda _: reply(FILM + b"more", Content_Length=str(len(FILM)))) as server:
        path = fetch_video(f"http://videos.test:{server.port}/", limits(server), tmp_path, resolver=here)
    assert path.read_bytes() == FILM


def test_compressed_bytes_are_never_unpacked(tmp_path):
    bomb = gzip.compress(bytes(1 << 24))
    with serving(lambda _: reply(bomb, Content_Encoding="gzip")) as server:
        assert "'gzip'" in refused(415, f"http://videos.test:{server.port}/", limits(server), tmp_path)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_sends_drop_by_drop_does_not_outlast_the_limit(tmp_path, part):
    def answer(_: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" + (b"" if part == "head" else b"\r\n")
        while not server.over.wait(0.02):
            yield b"x: y\r\n" if part == "head" else b"\0"

    with serving(answer) as server:
        refused(504, f"http://videos.test:{server.port}/", limits(server, max_seconds=0.5), tmp_path)


def test_a_name_that_is_never_resolved_does_not_outlast_the_limit(tmp_path):
    over = threading.Event()
    try:
        refused(504, "https://videos.test/", replace(HOME, max_seconds=0.2), tmp_path, lambda *_: over.wait(60) or [])
    finally:
        over.set()


def test_the_next_address_of_a_name_is_tried_when_one_does_not_answer(tmp_path):
    with serving(lambda _: reply()) as server:
        networks = ["127.0.0.0/8"]
        assert fetch_video(f"http://videos.test:{server.port}/", limits(server, networks=networks), tmp_path,
                           resolver=lambda *_: ["127.0.0.9", "127.0.0.1"]).exists()


@pytest.mark.parametrize("status", ["204 Nothing", "206 Partial", "401 Who", "404 Not Found", "500 Oops"])
def test_another_status_is_told(tmp_path, status):
    with serving(lambda _: reply(b"" if status[:3] == "204" else b"x", status)) as server:
        assert status[:3] in refused(502, f"http://videos.test:{server.port}/", limits(server), tmp_path)


@pytest.mark.parametrize("body", [b"", b"<html>", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"\x89PNG\r\n\x1a\n",
                                  b"ffconcat version 1.0\nfile /etc/passwd\n"])
def test_what_is_not_a_video_is_refused_by_its_content(tmp_path, body):
    with serving(lambda _: reply(body, Content_Type="video/mp4")) as server:
        refused(415, f"http://videos.test:{server.port}/film.mp4", limits(server), tmp_path)


def test_proxies_of_the_environment_are_not_asked(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lambda _: reply()) as server:
        assert fetch_video(f"http://videos.test:{server.port}/", limits(server), tmp_path, resolver=here).exists()


def test_a_download_that_is_cancelled_leaves_nothing(tmp_path):
    def answer(_: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n" + FILM
        begun.set()
        server.over.wait(60)

    async def leave() -> None:
        downloading = asyncio.ensure_future(fetch_video_async(
            f"http://videos.test:{server.port}/", limits(server), tmp_path, resolver=here))
        while not (begun.is_set() and list(tmp_path.iterdir())):
            await asyncio.sleep(0.01)
        downloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await downloading

    begun = threading.Event()
    with serving(answer) as server:
        asyncio.run(leave())
    assert list(tmp_path.iterdir()) == []


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate of its own for a name, and a client's that trusts it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    day = datetime.timedelta(days=1)
    made = (x509.CertificateBuilder().subject_name(named).issuer_name(named).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256()))
    pem, secret = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                         serialization.NoEncryption()))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem, secret)
    return server, ssl.create_default_context(cafile=str(pem))


def test_the_certificate_must_be_for_the_name_although_the_address_is_pinned(tmp_path, tmp_path_factory):
    server_side, client_side = certificate(tmp_path_factory.mktemp("certificates"), "videos.test")
    asked: list[str | None] = []
    server_side.sni_callback = lambda _, name, __: asked.append(name)
    with serving(lambda _: reply(), server_side) as server:
        allowed = limits(server, hosts=["*"], http=False, certificates=client_side)
        refused(502, f"https://other.test:{server.port}/", allowed, tmp_path)
        refused(502, f"https://videos.test:{server.port}/", replace(allowed, certificates=None), tmp_path)
        assert fetch_video(f"https://videos.test:{server.port}/", allowed, tmp_path, resolver=here).exists()
    assert asked == ["other.test", "videos.test", "videos.test"]
