from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aurora.inference.video_model import load

pytest.importorskip("gradio")
uvicorn = pytest.importorskip("uvicorn")

from aurora.ui.app import create_app  # noqa: E402
from aurora.ui.client import Client  # noqa: E402

pytestmark = [pytest.mark.process, pytest.mark.slow]
OpenPage = Callable[..., Any]


def add(page: Any, file: Path) -> None:
    page.wait_for_selector("#drop input[type=file]", state="attached")
    page.set_input_files("#drop input[type=file]", str(file))


def watched(page: Any, file: Path) -> None:
    """Adds a video and waits until it was watched."""
    add(page, file)
    page.wait_for_selector(f"#status .card:has-text('{file.stem}') .chip.ready")


def ask(page: Any, question: str) -> Any:
    """The article of a question that was asked."""
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    return page.locator(f"#conversation article:has-text('{question}')")


@pytest.fixture(scope="module")
def clip(make_video: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "street.mp4", 40)


@pytest.fixture
def no_service() -> Iterator[str]:
    """The page of a service that nobody started."""
    config = uvicorn.Config(create_app(Client("http://127.0.0.1:9", None)), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(autouse=True)
def no_films(asked: httpx.Client) -> None:
    for film in asked.get("/v1/films").json()["data"]:
        asked.delete(f"/v1/films/{film['id']}")


def test_before_the_first_film_the_page_says_how_to_begin(open_page: OpenPage) -> None:
    page = open_page()
    page.wait_for_selector("#status .empty li")
    assert "Add or choose a film first" in page.inner_text("#conversation")


def test_a_video_is_uploaded_watched_and_shown_with_its_frames_tokens_and_state(open_page: OpenPage, clip: Path,
                                                                               asked: httpx.Client) -> None:
    page = open_page()
    watched(page, clip)
    film = asked.get("/v1/films").json()["data"][0]
    told = page.inner_text("#status")
    assert f"{film['frames']} frames" in told and "MB" in told and "a frame)" in told
    buttons = page.locator("#timeline button")
    assert buttons.count() == len(asked.get(f"/v1/films/{film['id']}/thumbnails").json()["data"])
    assert re.search(r"0:0\d", buttons.first.inner_text())


def test_an_answer_comes_in_pieces_and_says_what_it_took(open_page: OpenPage, clip: Path) -> None:
    page = open_page()
    watched(page, clip)
    told = ask(page, "What is this?")
    seen: set[int] = set()
    while not told.locator("xpath=self::*[contains(@class, 'done')]").count():
        seen.add(len(told.locator(".answer").inner_text()))
    assert len(seen) > 2, "the answer grew in steps"
    assert re.search(r"\d+ tokens in [\d.]+ s", told.inner_text())


def test_escape_stops_an_answer_and_the_service_stops_too(open_page: OpenPage, clip: Path, asked: httpx.Client) -> None:
    page = open_page()
    watched(page, clip)
    told = ask(page, "Go on for ever")
    page.wait_for_function("document.querySelector('#conversation .answer')?.innerText.trim().length > 0")
    page.keyboard.press("Escape")
    page.wait_for_selector("#conversation article.stopped")
    assert "stopped" in told.inner_text() and page.locator("#ask").is_visible()
    while not re.search(r"^aurora_answering 0", asked.get("/metrics").text, re.MULTILINE):
        time.sleep(0.05)
    text = told.locator(".answer").inner_text()
    ask(page, "And now?")
    page.wait_for_selector("#conversation article.done")
    assert told.locator(".answer").inner_text() == text, "what was said before it was stopped stays"


def test_a_second_question_is_answered_from_the_same_state(open_page: OpenPage, clip: Path, talker: Path) -> None:
    page = open_page()
    watched(page, clip)
    for number, question in enumerate(("What is this?", "How many are there?"), 1):
        ask(page, question)
        page.wait_for_function(f"document.querySelectorAll('#conversation article.done').length === {number}")
    film = load(talker).watch(clip)
    for number, question in enumerate(("What is this?", "How many are there?")):
        shown = page.locator("#conversation .answer").nth(number).inner_text()
        assert film.ask(question).startswith(shown[:50]), "as without the page"


def test_the_tokens_of_any_frame_are_drawn_at_any_depth(open_page: OpenPage, clip: Path, talker: Path) -> None:
    page = open_page()
    watched(page, clip)
    page.wait_for_selector("#figure img")
    model = load(talker)
    depth = model.model.vision.depth
    assert f"after block {depth} of {depth}" in page.inner_text("#figure")
    before = page.get_attribute("#figure img", "src")
    page.locator("#depth input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_selector("#figure figcaption:has-text('before the first block')")
    assert page.get_attribute("#figure img", "src") != before
    page.locator("#timeline button").last.click()
    second = page.locator("#timeline button span").last.inner_text()
    page.wait_for_selector(f"#figure figcaption:has-text('{second},')")
    picture = page.get_attribute("#figure img", "src") or ""
    assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")


def test_another_keep_ratio_is_drawn_at_once_and_watched_again_when_asked(open_page: OpenPage, clip: Path,
                                                                         asked: httpx.Client) -> None:
    page = open_page()
    watched(page, clip)
    page.wait_for_selector("#figure img")
    left = page.inner_text("#figure b")
    page.locator("#keep-ratio input[type=range]").focus()
    page.keyboard.press("End")
    page.wait_for_function(f"document.querySelector('#figure b').innerText !== '{left}'")
    page.click("#again")
    page.wait_for_selector("#status .card:has-text('street 2') .chip.ready")
    ratios = {film["name"]: film["settings"]["keep_ratio"] for film in asked.get("/v1/films").json()["data"]}
    assert ratios["street 2"] == 1.0 and ratios["street"] < 1.0


def test_a_film_is_saved_to_a_file_deleted_and_loaded_again(open_page: OpenPage, clip: Path, asked: httpx.Client,
                                                            tmp_path: Path) -> None:
    page = open_page()
    watched(page, clip)
    with page.expect_download() as saving:
        page.click("a.save")
    saved = tmp_path / "street.aurora"
    saving.value.save_as(saved)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete")
    page.wait_for_selector("#status .empty")
    assert asked.get("/v1/films").json()["data"] == [] and asked.get("/v1/files").json()["data"] == []
    add(page, saved)
    page.wait_for_selector("#status .chip.ready")
    page.wait_for_selector("#figure figcaption:has-text('small picture')")
    ask(page, "Still there?")
    page.wait_for_selector("#conversation article.done")


def test_a_broken_video_is_an_error_in_words(open_page: OpenPage, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(1000))
    page = open_page()
    add(page, broken)
    page.wait_for_selector("[role=alert]")
    assert "Traceback" not in page.inner_text("body")


def test_a_service_that_is_away_is_said_and_may_be_tried_again(open_page: OpenPage, no_service: str) -> None:
    page = open_page(url=no_service)
    page.wait_for_selector("#problem [role=alert]")
    assert "does not answer" in page.inner_text("#problem")
    page.click("#retry")
    assert page.locator("#problem [role=alert]").is_visible()


def test_keys_reach_the_question_and_show_themselves(open_page: OpenPage) -> None:
    page = open_page()
    page.wait_for_selector("#status .empty")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.closest('#question') !== null")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.locator("#keys dl").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_telephone(open_page: OpenPage, clip: Path, scheme: str) -> None:
    page = open_page(width=390, height=844, color_scheme=scheme)
    watched(page, clip)
    page.wait_for_selector("#figure img")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
