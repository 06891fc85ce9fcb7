"""The page and its service: answers that take long, a service that ends, one that the page starts by itself."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aurora.inference.video_model import load

from .conftest import TOKEN, Process, Service

pytest.importorskip("gradio")
pytestmark = [pytest.mark.process, pytest.mark.slow]
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def talking(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("talking"), "--model", str(talker), "--port", "0")
    yield made
    made.end()


@pytest.fixture(scope="module")
def talking_page(talking: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    made = Process(tmp_path_factory.mktemp("page") / "log", "the page is at", "ui", "--service", talking.url,
                   "--port", "0")
    yield made.url
    made.end()


def begin(page: Any, question: str) -> Any:
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    return page.locator(f"#conversation article:has-text('{question}')")


def watched(page: Any, file: Path) -> None:
    page.wait_for_selector("#drop input[type=file]", state="attached")
    page.set_input_files("#drop input[type=file]", str(file))
    page.wait_for_selector(f"#status .card:has-text('{file.stem}') .chip.ready")


def answering(service: Service) -> int:
    found = re.search(r"^aurora_answering (\d+)", service.client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(found[1])


def test_an_answer_comes_in_pieces_and_is_that_of_the_library(open_page: OpenPage, talking_page: str, talker: Path,
                                                             video: Path) -> None:
    page = open_page(talking_page)
    assert not page.locator("#note .note").is_visible(), "it is not the shipped model"
    watched(page, video)
    told = begin(page, "What is this?")
    seen: set[int] = set()
    while not page.locator("#conversation article.done").count():
        seen.add(len(told.locator(".answer").inner_text()))
    assert len(seen) > 2, "the answer grew in steps"
    shown = told.locator(".answer").inner_text()
    assert len(shown) > 100 and shown.startswith(load(talker).watch(video).ask("What is this?")[:100])


def test_escape_stops_an_answer_and_the_service_stops_too(open_page: OpenPage, talking_page: str, talking: Service,
                                                          video: Path) -> None:
    page = open_page(talking_page)
    page.wait_for_selector("#status .chip.ready")
    told = begin(page, "Go on for ever")
    page.wait_for_function("document.querySelector('#conversation .answer')?.innerText.trim().length > 0")
    page.keyboard.press("Escape")
    page.wait_for_selector("#conversation article.stopped")
    assert "stopped" in told.inner_text()
    while answering(talking):
        time.sleep(0.05)
    text = told.locator(".answer").inner_text()
    assert len(text) < 256, "it was not made to its end"
    begin(page, "And now?")
    page.wait_for_selector("#conversation article.done:has-text('And now?')")
    assert told.locator(".answer").inner_text() == text, "what was said before it was stopped stays"


def test_who_leaves_or_goes_to_another_film_waits_for_no_answer(
    open_page: OpenPage, talking_page: str, talking: Service, make_video: Any, tmp_path: Path
) -> None:
    page = open_page(talking_page)
    page.wait_for_selector("#status .chip.ready")
    begin(page, "Go on")
    page.wait_for_function("document.querySelector('#conversation .answer')?.innerText.trim().length > 0")
    watched(page, make_video(tmp_path / "other.mp4", 8, seed=3))
    page.wait_for_selector("#conversation .empty")
    assert answering(talking) == 0 and page.locator("#ask").is_visible()
    begin(page, "Go on again")
    page.wait_for_function("document.querySelector('#conversation .answer')?.innerText.trim().length > 0")
    page.close()
    while answering(talking):
        time.sleep(0.05)


def test_a_service_that_ends_is_said_and_may_be_tried_again(open_page: OpenPage, talking_page: str, talking: Service
                                                            ) -> None:
    page = open_page(talking_page)
    page.wait_for_selector("#status .chip.ready")
    talking.process.send_signal(signal.SIGKILL)
    talking.process.wait(60)
    begin(page, "Are you there?")
    page.wait_for_selector("#conversation article.failed:has-text('does not answer')")
    page.reload()
    page.wait_for_selector("#problem [role=alert]:has-text('does not answer')")
    port = talking.url.rpartition(":")[2]
    talking.arguments = tuple(port if word == "0" else word for word in talking.arguments)
    talking.start()
    page.click("#retry")
    page.wait_for_selector("#status .chip.ready")  # the film is still there
    assert not page.locator("#problem [role=alert]").is_visible()


def test_a_page_for_others_asks_for_its_password_and_one_for_this_machine_takes_no_other_name(
    talking: Service, talking_page: str, tmp_path: Path
) -> None:
    page = Process(tmp_path / "log", "the page is at", "ui", "--host", "127.0.0.2", "--port", "0", "--service",
                   talking.url)
    try:
        for path in ("/", "/config", "/films/film_0.aurora"):
            assert httpx.get(f"{page.url}{path}").status_code == 401
            assert httpx.get(f"{page.url}{path}", auth=("me", "wrong")).status_code == 401
        shown = httpx.get(page.url, auth=("me", TOKEN))
        assert shown.status_code == 200 and "gradio" in shown.text
    finally:
        page.end()
    assert httpx.get(talking_page, headers={"Host": "evil.example"}).status_code == 400
    upload = f"{talking_page}/gradio_api/upload"
    assert httpx.post(upload, files={"files": b"x"}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert httpx.post(upload, files={"files": b"x"}).status_code == 200


def test_alone_it_starts_a_service_with_the_shipped_model_and_ends_it(open_page: OpenPage, tmp_path: Path) -> None:
    alone = Process(tmp_path / "log", "the page is at", "ui", "--port", "0", token=None)
    try:
        page = open_page(alone.url)
        page.click("#example")
        page.wait_for_selector("#status .chip.ready")
        children = [int(child) for task in Path(f"/proc/{alone.process.pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]
        assert children
    finally:
        assert alone.end() == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert (tmp_path / "films" / "example.aurora").exists()
    assert alone.log.read_text().count("\n") == 2, "the model, and where the page is"
