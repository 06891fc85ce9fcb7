from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora.inference.video_model import VideoModel, load
from aurora.ui import views

from .conftest import add, answer, ask, ready, watched

pytest.importorskip("gradio")
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.usefixtures("no_films")]
OpenPage = Callable[..., Any]


def slide(page: Any, which: str, key: str) -> None:
    page.locator(f"{which} input[type=range]").focus()
    page.keyboard.press(key)


def choose(page: Any, which: str, option: str) -> None:
    page.locator(f"{which} input").click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.fixture(scope="module")
def shipped() -> VideoModel:
    return load()


def test_the_first_visit_leads_from_the_example_to_an_answer(open_page: OpenPage, served: str, shipped: VideoModel
                                                             ) -> None:
    page = open_page(served)
    page.wait_for_selector("#status .empty li")
    assert "knows only Blocks world" in page.inner_text("#note")
    assert "Add or choose a film first" in page.inner_text("#conversation")
    page.click("#example")
    ready(page, "example")
    page.click(f"text={views.QUESTIONS[0]}")
    assert page.evaluate("document.activeElement.closest('#question') !== null")
    page.keyboard.press("Enter")
    film = shipped.watch(views.EXAMPLE)
    assert answer(page, views.QUESTIONS[0]) == film.ask(views.QUESTIONS[0])
    assert film.ask(views.QUESTIONS[0]).rstrip(".") == "3"


def test_a_video_is_uploaded_watched_and_shown_with_its_frames_tokens_and_memory(
    open_page: OpenPage, served: str, service: Any, clip: Path, shipped: VideoModel
) -> None:
    page = open_page(served)
    watched(page, clip)
    film, told = service.films()["street"], page.inner_text("#status")
    tokens = shipped.layout.tokens(120, 160)
    assert f"{film['frames']} frames" in told and f"{film['frames'] * tokens} ({tokens} a frame)" in told
    assert views.megabytes(film["state_bytes"]) in told and "1 film in memory" in page.inner_text("#memory")
    buttons = page.locator("#timeline button")
    assert buttons.count() == len(service.client.get(f"/v1/films/{film['id']}/thumbnails").json()["data"]) > 1
    assert re.search(r"0:0\d", buttons.first.inner_text())


def test_a_second_question_is_answered_from_the_same_state(open_page: OpenPage, served: str, clip: Path,
                                                           shipped: VideoModel) -> None:
    page = open_page(served)
    watched(page, clip)
    film = shipped.watch(clip)
    for question in ("How many objects can be seen?", "Describe the video in detail."):
        assert ask(page, question) == film.ask(question)
    took = page.locator("#conversation .small").last.inner_text()
    assert re.search(r"\d+ tokens in [\d.]+ s.* none of the film", took)


def test_what_is_remembered_is_there_when_the_page_is_opened_again(open_page: OpenPage, served: str, clip: Path
                                                                   ) -> None:
    page = open_page(served)
    watched(page, clip)
    page.check("#remember input")
    said = ask(page, "What color is it?")
    page.reload()
    ready(page, "street")
    assert answer(page, "What color is it?") == said


def test_the_tokens_of_any_frame_are_drawn_at_any_depth(open_page: OpenPage, served: str, clip: Path,
                                                        shipped: VideoModel) -> None:
    page = open_page(served)
    watched(page, clip)
    depth = shipped.model.vision.depth
    page.wait_for_selector(f"#figure figcaption:has-text('after block {depth} of {depth}')")
    before = page.get_attribute("#figure img", "src")
    slide(page, "#depth", "Home")
    page.wait_for_selector("#figure figcaption:has-text('before the first block')")
    assert page.get_attribute("#figure img", "src") != before
    page.locator("#timeline button").first.click()
    page.keyboard.press("ArrowRight")
    second = page.locator("#timeline button span").nth(1).inner_text()
    page.wait_for_selector(f"#figure figcaption:has-text('{second},')")
    picture = page.get_attribute("#figure img", "src") or ""
    assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")


def test_keep_ratio_merge_and_order_are_drawn_at_once_and_used_when_it_is_watched_again(
    open_page: OpenPage, served: str, service: Any, clip: Path
) -> None:
    page = open_page(served)
    watched(page, clip)
    left = page.inner_text("#figure b")
    slide(page, "#keep-ratio", "End")
    page.wait_for_function(f"document.querySelector('#figure b').innerText !== '{left}'")
    slide(page, "#keep-ratio", "Home")
    page.wait_for_selector("#figure b:text-is('2')")
    choose(page, "#merge", "none")
    page.wait_for_selector("#figure b:text-is('64')")
    slide(page, "#keep-ratio", "End")
    choose(page, "#sort", "random")
    page.click("#again")
    ready(page, "street 2")
    used = service.films()["street 2"]["settings"]
    assert used["keep_ratio"] == 1.0 and used["merge"]["name"] == "none" and used["sort"]["name"] == "random"
    assert service.films()["street"]["settings"]["merge"]["name"] == "tome"


def test_a_film_is_saved_to_a_file_deleted_and_loaded_again(open_page: OpenPage, served: str, service: Any, clip: Path,
                                                            tmp_path: Path, shipped: VideoModel) -> None:
    page = open_page(served)
    watched(page, clip)
    with page.expect_download() as saving:
        page.click("a.save")
    saved = tmp_path / saving.value.suggested_filename
    saving.value.save_as(saved)
    assert saved.name == "street.aurora"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete")
    page.wait_for_selector("#status .empty")
    assert service.films() == {} and service.client.get("/v1/files").json()["data"] == []
    add(page, saved)
    page.wait_for_selector("#figure figcaption:has-text('small picture')")
    question = "How many objects can be seen?"
    assert ask(page, question) == shipped.open(saved).ask(question)


def test_a_reload_while_a_film_is_watched_goes_on_with_it_and_it_is_asked_meanwhile(
    open_page: OpenPage, served: str, service: Any, clip: Path, make_video: Any, tmp_path: Path
) -> None:
    page = open_page(served)
    watched(page, clip)
    page.fill("#fps input", "30")
    page.press("#fps input", "Tab")
    add(page, make_video(tmp_path / "long.mp4", 4500, fps=30, size=(64, 48)))
    page.wait_for_selector("#status .chip.watching")
    page.wait_for_function("Number(document.querySelector('#status [role=progressbar]')?.ariaValueNow) > 0")
    page.reload()
    page.wait_for_selector("#status .card:has-text('long') .chip.watching")  # not the film before it
    ask(page, "What is there?")
    assert service.films()["long"]["status"] == "watching", "it was asked while it was watched"
    page.wait_for_selector("#status .card:has-text('long') .chip.ready")
    assert page.locator("#conversation article").count() == 1, "the conversation stays when the film is ready"
    assert float(page.locator("#second input[type=range]").get_attribute("max")) == pytest.approx(150.0, abs=0.2)


def test_two_tabs_know_of_each_others_films(open_page: OpenPage, served: str, clip: Path) -> None:
    one, two = open_page(served), open_page(served)
    two.wait_for_selector("#status .empty")
    watched(one, clip)
    two.locator("#films input").click()
    two.get_by_role("option", name="street", exact=True).click()
    ready(two, "street")
    one.on("dialog", lambda dialog: dialog.accept())
    one.click("#delete")
    one.wait_for_selector("#status .empty")
    two.fill("#question textarea", "Still there?")
    two.press("#question textarea", "Enter")
    two.wait_for_selector("#conversation article.failed:has-text('no film')")
