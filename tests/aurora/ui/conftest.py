"""Real services, the page in a process of its own, and Debian's Chromium that opens it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from aurora.model import AuroraModel
from aurora.weights.model_folder import save_model

ROOT = Path(__file__).parents[3]
TOKEN = "a token that nobody guesses"
LEFT = ("AbortError", "Connection errored out")
"""What Gradio's own script says when a page is left or loaded again while it listens."""


class Process:
    """A command that says where it listens; its other lines go to a file."""

    def __init__(self, log: Path, says: str, *arguments: str, token: str | None = TOKEN) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                       "OMP_NUM_THREADS": "1"} | ({} if token is None else {"AURORA_TOKEN": token})
        self.log, self.arguments, self.environment, self.says = log, arguments, environment, says
        self.start()

    def start(self) -> None:
        with self.log.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "aurora", *self.arguments], stderr=file,
                                            cwd=self.log.parent, env=self.environment)
        found = None
        while found is None:
            time.sleep(0.1)
            found = re.search(rf"{self.says} (http://\S+)", self.log.read_text())
            assert found or self.process.poll() is None, self.log.read_text()
        self.url = found[1]

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(120)


class Service(Process):
    """`aurora serve`, and a client that speaks to it without the page."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        super().__init__(folder / "log", "listening on", "serve", "--store", "store", *arguments)
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300)

    def films(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return {film["name"]: film for film in self.client.get("/v1/films").json()["data"]}

    def end(self, how: int = signal.SIGTERM) -> int:
        self.client.close()
        return super().end(how) if self.process.poll() is None else 0


@pytest.fixture(scope="session")
def talker(make_model: Callable[..., AuroraModel], make_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "a" or "b" until it is told to end, and takes seconds for it."""
    slow = {"prompt": {"name": "generic"},
            "backbone": {"name": "rwkv6", "hidden_size": 32, "layers": 96, "head_size": 16}}
    model = make_model(**slow)
    with torch.no_grad():
        head = model.backbone.head.weight
        head.zero_()
        head[ord("a") + 1], head[ord("b") + 1] = 1.0, -1.0
    folder = tmp_path_factory.mktemp("talker") / "model"
    save_model(model, make_config(**slow), folder)
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the shipped model."""
    made = Service(tmp_path_factory.mktemp("service"), "--port", "0")
    yield made
    made.end()


@pytest.fixture(scope="session")
def served(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of this service."""
    made = Process(tmp_path_factory.mktemp("page") / "log", "the page is at", "ui", "--service", service.url,
                   "--port", "0")
    yield made.url
    assert made.end() == 0
    assert "Traceback" not in made.log.read_text(), made.log.read_text()


@pytest.fixture(scope="module")  # Playwright holds an event loop of this thread until it ends
def browser() -> Iterator[Any]:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed: apt-get install -y chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens the page; at last no console error may have been seen, and nothing fetched from elsewhere."""
    contexts, wrong = [], []

    def look(page: Any, url: str) -> None:
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" and not any(
            text in said.text for text in LEFT) else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: wrong.append(sent.url) if not sent.url.startswith(
            (url, "data:", "blob:")) else None)

    def open_page(url: str, *, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        look(page, url)
        page.goto(url)
        page.wait_for_selector("#head h1")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def clip(make_video: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "street.mp4", 40, size=(160, 120))


@pytest.fixture
def no_films(service: Service) -> None:
    """The shared service keeps nothing of other tests."""
    for kind in ("films", "files"):
        for one in service.client.get(f"/v1/{kind}").json()["data"]:
            service.client.delete(f"/v1/{kind}/{one['id']}")


def add(page: Any, file: Path) -> None:
    page.wait_for_selector("#drop input[type=file]", state="attached")
    page.set_input_files("#drop input[type=file]", str(file))


def ready(page: Any, name: str) -> None:
    page.wait_for_selector(f"#status .card:has-text('{name}') .chip.ready")
    page.wait_for_selector("#figure img")


def watched(page: Any, file: Path) -> None:
    """Adds a video and waits until it was watched."""
    add(page, file)
    ready(page, file.stem)


def ask(page: Any, question: str) -> str:
    """The answer, once it is whole."""
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    return answer(page, question)


def answer(page: Any, question: str) -> str:
    article = page.locator(f"#conversation article.done:has-text('{question}')").last
    article.wait_for()
    return str(article.locator(".answer").inner_text())
