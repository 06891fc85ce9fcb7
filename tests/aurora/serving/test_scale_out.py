"""Films on Ray Serve and LitServe with two replicas each, on real sockets of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aurora.inference.generation import Generation
from aurora.inference.store import FilmStore
from aurora.inference.video_model import VideoModel, load

RAY = """
import sys

import ray
from ray import serve

from aurora.serving.ray_serve import Arguments, application

store, model, port = sys.argv[1:]
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
serve.run(application(Arguments(store=store, model=model, replicas=2, cpus=0.1)))
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
ENGINES = {
    "ray": lambda store, model, port: [sys.executable, "-c", RAY, store, model, port],
    "litserve": lambda store, model, port: [sys.executable, "-m", "aurora.serving.litserve", "--store", store,
                                            "--model", model, "--port", port, "--workers", "2"],
}
WAIT_SECONDS = 600


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> VideoModel:
    return load(model_folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(port: int, body: object) -> tuple[int, Any]:
    """The status and the body of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/ask", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextmanager
def serving(engine: str, store: Path, model: Path) -> Iterator[int]:
    """The port of an engine that answers, which is ended with all of its processes."""
    port = free_port()
    process = subprocess.Popen(ENGINES[engine](str(store), str(model), str(port)), stdin=subprocess.PIPE,
                               start_new_session=True, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"})
    assert process.stdin is not None
    try:
        until, status = time.monotonic() + WAIT_SECONDS, 0
        while status != 404:
            assert process.poll() is None and time.monotonic() < until
            with suppress(OSError, ValueError):
                status, _ = post(port, {"film": "none", "question": "?"})
            time.sleep(0.2)
        yield port
    finally:
        process.stdin.close()
        if engine != "ray":
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_replicas_answer_about_every_film_of_the_store(
        engine: str, loaded: VideoModel, model_folder: Path, make_video: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("litserve" if engine == "litserve" else "ray.serve")
    store, options = FilmStore(tmp_path / "films"), Generation(max_new_tokens=4)
    films = [loaded.watch(make_video(tmp_path / f"{number}.mp4", 16, seed=number)) for number in range(3)]
    for number, film in enumerate(films[:2]):
        store.save(film, f"clips/{number}")
    with serving(engine, store.folder, model_folder) as port:
        bodies = [{"film": f"clips/{number % 2}", "question": f"What {number}?", "max_tokens": 4} for number in range(12)]
        with ThreadPoolExecutor(6) as clients:
            # what is wrong with one request is the error of no other in its batch
            wrong = clients.submit(post, port, {"film": "clips/0", "question": "What?", "max_tokens": 0})
            told = list(clients.map(lambda body: post(port, body), bodies))
        for body, (status, answer) in zip(bodies, told, strict=True):
            film = films[int(body["film"][-1])]
            assert (status, answer["answer"]) == (200, film.ask(body["question"], options=options))
            assert (answer["film"], answer["frames"]) == (body["film"], film.frames)
        assert wrong.result()[0] == (422 if engine == "ray" else 400)
        store.save(films[2], "clips/0")  # and whichever replica answers sees it
        for _ in range(4):
            assert post(port, bodies[0])[1]["answer"] == films[2].ask("What 0?", options=options)
        assert post(port, {"film": "../clips/0", "question": "?"})[0] == 404
