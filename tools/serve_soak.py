"""Clients that misbehave against a real server, then kills: every status must be right, no answer wrong, the memory
flat within 5 %, and no film lost or torn.

    python -m tools.serve_soak MINUTES [--model FOLDER] [--kills 20] [--clients 4]
"""

import argparse
import base64
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from aurora.inference.film_file import read_film

TOKEN = "soak-" * 5
QUESTION = "What happens?"
TOKENS = 16
SAMPLE_SECONDS = 2.0


class Server:
    """`aurora serve` in a process."""

    def __init__(self, folder: Path, model: str | None) -> None:
        self.log, self.store = folder / "log", folder / "store"
        self.arguments = [sys.executable, "-m", "aurora", "serve", "--store", str(self.store), "--port", "0",
                          "--max-upload-mb", "2", "--video-url", "example.org",
                          "dtype=float32",  # in which an answer does not depend on what else is in the pass
                          *(() if model is None else ("--model", model))]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(self.arguments, stderr=log, env={**os.environ, "AURORA_TOKEN": TOKEN})
        found = None
        while found is None:
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text()[-2000:])
            time.sleep(0.1)
            found = re.search(r"listening on (http://\S+)", self.log.read_bytes()[begin:].decode())
        self.url = found[1]

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, headers={"Authorization": f"Bearer {TOKEN}", **headers})

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def resident(self) -> int:
        """Bytes of memory of the server's process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Soak:
    """What is done to a server, and what came of it."""

    def __init__(self, server: Server, videos: list[bytes]) -> None:
        self.server, self.videos = server, videos
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.films: dict[str, str] = {}
        self.answers: dict[int, str] = {}

    def prepare(self) -> None:
        """Films with their answers, before anybody misbehaves."""
        with self.server.client() as client:
            for number, video in enumerate(self.videos):
                name = f"film {number}"
                client.post("/v1/films", files={"file": ("a.mp4", video)}, data={"name": name}).raise_for_status()
                client.get(f"/v1/films/{name}/events")
                self.films[name] = self._ask(client, name)
                self.answers[number] = self._chat(client, video).json()["choices"][0]["message"]["content"]

    def _ask(self, client: httpx.Client, name: str) -> str:
        asked = client.post(f"/v1/films/{name}/ask", json={"question": QUESTION, "max_tokens": TOKENS})
        asked.raise_for_status()
        return str(asked.json()["answer"])

    def _chat(self, client: httpx.Client, raw: bytes, url: str | None = None) -> httpx.Response:
        url = url or f"data:video/mp4;base64,{base64.b64encode(raw).decode()}"
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        return client.post("/v1/chat/completions", json={"model": "aurora", "max_tokens": TOKENS,
                                                         "messages": [{"role": "user", "content": content}]})

    def run(self, seconds: float, clients: int) -> list[int]:
        """Misbehaves for so long; the memory of the server, one sample every few seconds."""
        until, samples = time.monotonic() + seconds, []
        threads = [threading.Thread(target=self._client, args=(number, until)) for number in range(clients)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)
            samples.append(self.server.resident())
        for thread in threads:
            thread.join()
        return samples

    def _client(self, seed: int, until: float) -> None:
        rng = random.Random(seed)
        acts: list[Callable[[httpx.Client, random.Random], None]] = [
            self.ask, self.ask, self.chat, self.leave, self.oversize, self.broken, self.paths, self.tokens,
            self.addresses, self.unsupported, self.fork_and_delete]
        with self.server.client() as client:
            while time.monotonic() < until:
                act = rng.choice(acts)
                self.counts[act.__name__] += 1
                try:
                    act(client, rng)
                except Exception as error:
                    self.wrong.append(f"{act.__name__}: {error!r}")

    def expect(self, answer: httpx.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            self.wrong.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} "
                              f"{answer.text[:200]}, not {statuses}")

    def ask(self, client: httpx.Client, rng: random.Random) -> None:
        name = rng.choice([*self.films])
        if (answer := self._ask(client, name)) != self.films[name]:
            self.wrong.append(f"{name} answered {answer!r}, not {self.films[name]!r}")

    def chat(self, client: httpx.Client, rng: random.Random) -> None:
        number = rng.randrange(len(self.videos))
        answer = self._chat(client, self.videos[number])
        self.expect(answer, 200)
        if answer.json()["choices"][0]["message"]["content"] != self.answers[number]:
            self.wrong.append(f"video {number} was answered otherwise")

    def leave(self, client: httpx.Client, rng: random.Random) -> None:
        body = {"question": f"Tell me about {rng.random()}", "stream": True, "max_tokens": 1000}
        with (contextlib.suppress(httpx.TimeoutException),
              client.stream("POST", f"/v1/films/{rng.choice([*self.films])}/ask", json=body, timeout=2) as answer):
            for _ in answer.iter_lines():
                break

    def oversize(self, client: httpx.Client, rng: random.Random) -> None:
        raw = rng.randbytes(3 << 20)
        self.expect(client.post(rng.choice(["/v1/files", "/v1/films"]), files={"file": ("a", raw)}), 413)

    def broken(self, client: httpx.Client, rng: random.Random) -> None:
        raw = bytearray(rng.choice(self.videos))
        for _ in range(rng.randrange(1, 400)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        self.expect(self._chat(client, bytes(raw[: rng.randrange(1, len(raw))])), 200, 422)

    def paths(self, client: httpx.Client, rng: random.Random) -> None:
        forged = rng.choice(["..%2F..%2Flog", "%2Fetc%2Fpasswd", "file-" + "0" * 32, ".service%2Fjobs"])
        self.expect(client.get(f"/v1/{rng.choice(['films', 'files'])}/{forged}"), 404)
        name = rng.choice(["../evil", "/evil", "a/../../evil", ".evil", "a\0b"])
        answer = client.post("/v1/films", files={"file": ("../../evil.mp4", self.videos[0])}, data={"name": name})
        self.expect(answer, 400)

    def tokens(self, client: httpx.Client, rng: random.Random) -> None:
        given = rng.choice(["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN[:-2]}"])
        self.expect(client.get("/v1/models", headers={"Authorization": given}), 401)

    def addresses(self, client: httpx.Client, rng: random.Random) -> None:
        url = rng.choice(["https://127.0.0.1/a.mp4", "https://169.254.169.254/latest", "https://[::1]/a.mp4",
                          "https://localhost/a.mp4", "http://example.org/a.mp4", "file:///etc/passwd",
                          "https://example.org@127.0.0.1/a.mp4", f"https://127.0.0.1:{self.server.url[-5:]}/metrics"])
        self.expect(self._chat(client, b"", url), 400, 403)

    def unsupported(self, client: httpx.Client, rng: random.Random) -> None:
        body = {"model": "aurora", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        field = rng.choice([{"n": 2}, {"tools": [{}]}, {"min_p": 0.1}, {"messages": []}, {"temperature": "hot"}])
        self.expect(client.post("/v1/chat/completions", json=body | field), 400)

    def fork_and_delete(self, client: httpx.Client, rng: random.Random) -> None:
        name = rng.choice([*self.films])
        made = client.post(f"/v1/films/{name}/fork", json={})
        self.expect(made, 201)
        if self._ask(client, made.json()["id"]) != self.films[name]:
            self.wrong.append(f"a fork of {name} answered otherwise")
        self.expect(client.delete(f"/v1/films/{made.json()['id']}"), 200)

    def kill(self, times: int) -> None:
        """Kills while films are saved; what a client was told is kept must be there, whole."""
        rng, promised = random.Random(0), dict(self.films)
        for number in range(times):
            stopped = threading.Event()

            def fork(stopped: threading.Event = stopped, number: int = number) -> None:
                with contextlib.suppress(httpx.HTTPError), self.server.client() as client:
                    for count in range(10_000):
                        name = rng.choice([*self.films])
                        made = client.post(f"/v1/films/{name}/fork", json={"name": f"fork {number} {count}"})
                        if made.status_code == 201:
                            promised[made.json()["name"]] = self.films[name]
                stopped.set()

            threading.Thread(target=fork).start()
            time.sleep(rng.uniform(0.05, 1.0))
            self.server.kill()
            stopped.wait()
            for path in self.server.store.glob("*.aurora"):
                read_film(path)
            self.server.start()
            with self.server.client() as client:
                there = {film["name"] for film in client.get("/v1/films").json()["data"]}
                for name in sorted(promised.keys() - there):
                    self.wrong.append(f"kill {number}: {name} is lost")
                for name in rng.sample(sorted(promised), min(4, len(promised))):
                    if self._ask(client, name) != promised[name]:
                        self.wrong.append(f"kill {number}: {name} answers otherwise")
        print(f"{times} kills: {len(promised)} films were promised", flush=True)


def video(seed: int) -> bytes:
    """The bytes of an mp4 of noise that changes."""
    rng = np.random.default_rng(seed)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(24):
                picture = np.repeat(np.repeat(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), 8, 0), 8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), given.model)
        try:
            soak = Soak(server, [video(seed) for seed in range(4)])
            soak.prepare()
            samples = soak.run(60 * given.minutes, given.clients)
            soak.kill(given.kills)
        finally:
            server.kill()
    return report(soak, samples)


def report(soak: Soak, samples: list[int]) -> int:
    """Prints what came of it; 1 when something is wrong."""
    result: dict[str, Any] = {"acts": dict(soak.counts), "wrong": soak.wrong[:20]}
    quarter = max(1, len(samples) // 4)
    early, late = (statistics.median(part) for part in (samples[quarter:2 * quarter] or samples, samples[-quarter:]))
    result |= {"resident_mb": [round(early / 1e6, 1), round(late / 1e6, 1)], "growth": round(late / early - 1, 4)}
    print(json.dumps(result, indent=2))
    return 1 if soak.wrong or late > 1.05 * early else 0


if __name__ == "__main__":
    sys.exit(main())
