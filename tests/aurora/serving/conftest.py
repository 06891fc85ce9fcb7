"""A real server in a process of its own, and the clients that speak to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aurora.inference.video_model import VideoModel, load
from aurora.model import AuroraModel
from aurora.weights.model_folder import save_model

TOKEN = "a token that nobody guesses"
ROOT = Path(__file__).parents[3]


class Served:
    """`aurora serve` in a process; its log goes to a file."""

    def __init__(self, model: Path, store: Path, log: Path, *options: str) -> None:
        self.store, self.log = store, log
        self._arguments = [sys.executable, "-W", "error", "-m", "aurora", "serve", "--model", str(model), "--store",
                           str(store), "--port", "0", *options]
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AURORA_TOKEN": TOKEN}
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(self._arguments, stderr=log, env=environment)
        found = None
        while found is None:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"listening on (http://\S+)", self.log.read_bytes()[begin:].decode())
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300)

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        self.client.close()
        self.process.send_signal(with_signal)
        return self.process.wait(120)

    def watch(self, video: Path, **options: Any) -> dict[str, Any]:
        """An uploaded film, once it is ready."""
        with video.open("rb") as file:
            made = self.client.post("/v1/films", files={"file": (video.name, file)}, data=options)
        assert made.status_code == 202, made.text
        return self.follow(made.json()["id"])

    def follow(self, film_id: str) -> dict[str, Any]:
        """A film once it is ready or failed, by its events."""
        self.client.get(f"/v1/films/{film_id}/events").raise_for_status()  # ends then
        told: dict[str, Any] = self.client.get(f"/v1/films/{film_id}").json()
        return told

    def ask(self, film_id: str, question: str, **options: Any) -> dict[str, Any]:
        asked = self.client.post(f"/v1/films/{film_id}/ask", json={"question": question, **options})
        asked.raise_for_status()
        answer: dict[str, Any] = asked.json()
        return answer

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])


@pytest.fixture(scope="session")
def generic_folder(make_model: Callable[..., AuroraModel], make_config: Any, tmp_path_factory: pytest.TempPathFactory
                   ) -> Path:
    """A tiny model of random weights whose prompt shares a film."""
    folder = tmp_path_factory.mktemp("generic") / "model"
    config = {"prompt": {"name": "generic"}}
    save_model(make_model(**config), make_config(**config), folder)
    return folder


@pytest.fixture(scope="session")
def library(generic_folder: Path) -> VideoModel:
    """The same model without a server."""
    return load(generic_folder)


@pytest.fixture(scope="session")
def serve(generic_folder: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers, which are ended at last."""
    started: list[Served] = []

    def start(folder: Path, *options: str, model: Path = generic_folder) -> Served:
        started.append(Served(model, folder / "store", folder / "log", *options))
        return started[-1]

    yield start
    for one in started:
        one.client.close()
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One that many tests share."""
    return serve(tmp_path_factory.mktemp("server"), "--max-upload-mb", "1", "--max-new-tokens", "600")
