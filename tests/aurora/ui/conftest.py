"""A real service, the page in a process of its own, and Debian's Chromium that opens it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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
TOKENS = 400


class Process:
    """A command that says where it listens; its other lines go to a file."""

    def __init__(self, log: Path, says: str, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AURORA_TOKEN": TOKEN}
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "aurora.cli", *arguments], stderr=file,
                                            env=environment)
        found = None
        while found is None:
            found = re.search(rf"{says} (http://\S+)", log.read_text())
            assert found or self.process.poll() is None, log.read_text()
        self.url = found[1]

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(120)


@pytest.fixture(scope="session")
def talker(make_model: Callable[..., AuroraModel], make_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "a" or "b" until it is told to end."""
    model = make_model(prompt={"name": "generic"})
    with torch.no_grad():
        head = model.backbone.head.weight
        head.zero_()
        head[ord("a") + 1], head[ord("b") + 1] = 1.0, -1.0
    folder = tmp_path_factory.mktemp("talker") / "model"
    save_model(model, make_config(prompt={"name": "generic"}), folder)
    return folder


@pytest.fixture(scope="session")
def service(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("service")
    made = Process(folder / "log", "listening on", "serve", "--model", str(talker), "--store", str(folder / "store"),
                   "--port", "0", "--max-new-tokens", str(TOKENS))
    yield made
    made.end()


@pytest.fixture(scope="session")
def asked(service: Process) -> Iterator[httpx.Client]:
    """The service without the page."""
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300) as client:
        yield client


@pytest.fixture(scope="session")
def served(service: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The page."""
    log = tmp_path_factory.mktemp("page") / "log"
    made = Process(log, "the page is at", "ui", "--server", service.url, "--port", "0")
    yield made
    made.end()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed: apt-get install -y chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any, served: Process) -> Iterator[Callable[..., Any]]:
    """Opens the page; at last no console error may have been seen, and nothing fetched from elsewhere."""
    contexts, wrong = [], []

    def look(page: Any, url: str) -> None:
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: wrong.append(f"asked for {sent.url}") if not sent.url.startswith(
            (url, "data:", "blob:")) else None)

    def open_page(*, url: str = served.url, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        look(page, url)
        page.goto(url)
        page.wait_for_selector("#head h1")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
