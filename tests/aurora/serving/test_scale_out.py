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
REPLICA = {"ray": b"ray::ServeReplica:default:Films", "litserve": b"spawn_main"}
"""What the command lines of their processes say."""
WAIT_SECONDS = 300


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
def serving(engine: str, store: Path, model: Path) -> Iterator[tuple[int, int]]:
    """The port of an engine that answers, and its process, which is ended with all that it has started."""
    port = free_port()
    process = subprocess.Popen(ENGINES[engine](str(store), str(model), str(port)), stdin=subprocess.PIPE,
                               start_new_session=True, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"})
    assert process.stdin is not None
    try:
        until, status = time.monotonic() + WAIT_SECONDS, 0
        while status != 404 or len(replicas(engine, process.pid)) < 2:
            assert process.poll() is None and time.monotonic() < until
            with suppress(OSError, ValueError):
                status, _ = post(port, {"film": "none", "question": "?"})
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.stdin.close()
        if engine != "ray":
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def replicas(engine: str, pid: int) -> list[int]:
    """The processes with a model, of those that a process has started."""
    name, waiting, found = REPLICA[engine], [pid], []
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):  # it has ended
            found += [pid] * (name in Path(f"/proc/{pid}/cmdline").read_bytes())
            waiting += [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                        for child in (task / "children").read_text().split()]
    return found


def ask_one_film(port: int) -> None:
    """A film is asked where it is in memory already, once that is known."""
    told = []
    for _ in range(12):
        told.append(post(port, {"film": "clips/2", "question": "What?", "max_tokens": 1})[1]["replica"])
        time.sleep(2 if len(told) == 1 else 0)
    assert len(set(told)) == 1, told


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("engine", [
    "litserve", pytest.param("ray", marks=pytest.mark.skipif(
        "AURORA_LONG" not in os.environ, reason="takes most of a minute: AURORA_LONG=1 runs it"))])
def test_two_replicas_answer_about_every_film_of_the_store(
        engine: str, loaded: VideoModel, model_folder: Path, make_video: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("litserve" if engine == "litserve" else "ray.serve")
    store, options = FilmStore(tmp_path / "films"), Generation(max_new_tokens=4)
    films = [loaded.watch(make_video(tmp_path / f"{number}.mp4", 16, seed=number)) for number in range(3)]
    for number, film in enumerate(films):
        store.save(film, f"clips/{number}")
    bodies = [{"film": f"clips/{number % 2}", "question": f"What {number}?", "max_tokens": 4} for number in range(12)]

    def check(body: dict[str, Any], told: tuple[int, Any]) -> None:
        film = films[int(body["film"][-1])]
        assert told[0] == 200 and told[1]["answer"] == film.ask(body["question"], options=options), told
        assert (told[1]["film"], told[1]["frames"]) == (body["film"], film.frames)

    with serving(engine, store.folder, model_folder) as (port, pid):
        with ThreadPoolExecutor(6) as clients:
            # what is wrong with one request is the error of no other in its batch
            wrong = clients.submit(post, port, {"film": "clips/0", "question": "  "})
            told = list(clients.map(lambda body: post(port, body), bodies))
        for body, answer in zip(bodies, told, strict=True):
            check(body, answer)
        assert wrong.result() == (422, {"detail": "the question is empty"})
        assert post(port, {"film": "clips/0", "question": "What?", "max_tokens": 0})[0] == 422
        assert post(port, {"film": "../clips/0", "question": "?"})[0] == 404
        if engine == "ray":  # LitServe would lose the next request with the process
            ask_one_film(port)
            os.kill(replicas(engine, pid)[0], signal.SIGKILL)
            for body in bodies[:6]:
                check(body, post(port, body))
        store.save(films[2], "clips/0")  # whichever replica answers sees it
        films[0] = films[2]
        for body in bodies[:6]:
            check(body, post(port, body))
