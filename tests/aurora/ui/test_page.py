from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from aurora.inference.video_model import VideoModel, load
from aurora.ui import views
from aurora.ui.page import EXAMPLE

pytest.importorskip("gradio")
pytestmark = [pytest.mark.process, pytest.mark.slow]
OpenPage = Callable[..., Any]


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


def slide(page: Any, which: str, key: str) -> None:
    page.locator(f"{which} input[type=range]").focus()
    page.keyboard.press(key)


def choose(page: Any, which: str, option: str) -> None:
    page.locator(f"{which} input").click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.fixture(scope="module")
def clip(make_video: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "street.mp4", 40, size=(160, 120))


@pytest.fixture(scope="module")
def shipped() -> VideoModel:
    return load()


@pytest.fixture(autouse=True)
def no_films(service: Any) -> None:
    for kind in ("films", "files"):
        for one in service.client.get(f"/v1/{kind}").json()["data"]:
            service.client.delete(f"/v1/{kind}/{one['id']}")


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
    film = shipped.watch(EXAMPLE)
    assert answer(page, views.QUESTIONS[0]) == film.ask(views.QUESTIONS[0]) == "yellow"


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


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return path


def noise(path: Path) -> Path:
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(1000))
    return path


def text(path: Path) -> Path:
    path.write_text("not a video")
    return path


@pytest.mark.parametrize(("make", "name"), [
    (no_frames, "broken.mp4"), (noise, "<b>broken.mp4"), (text, "broken.mp4"), (noise, "broken.aurora")])
def test_what_is_no_video_is_an_error_in_words_and_can_be_deleted(
    open_page: OpenPage, served: str, service: Any, tmp_path: Path, make: Callable[[Path], Path], name: str
) -> None:
    page = open_page(served)
    page.wait_for_selector("#status .empty")
    add(page, make(tmp_path / name))
    page.wait_for_selector("[role=alert]")
    assert "Traceback" not in page.inner_text("body") and str(tmp_path) not in page.inner_text("body")
    if service.films():
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#delete")
    page.wait_for_selector("#status .empty")
    assert service.films() == {} and service.client.get("/v1/files").json()["data"] == []


def test_a_damaged_film_of_the_store_is_said_to_be_one(open_page: OpenPage, served: str, service: Any) -> None:
    noise(service.folder / "store" / "old film.aurora")
    page = open_page(served)
    page.wait_for_selector("#status .problem:has-text('old film') .chip.damaged")
    assert "Add or choose a film first" in page.inner_text("#conversation")


def test_a_video_of_one_frame_is_a_film(open_page: OpenPage, served: str, make_video: Any, tmp_path: Path) -> None:
    page = open_page(served)
    watched(page, make_video(tmp_path / "still.mp4", 1))
    assert "1 frame," in page.inner_text("#status")
    ask(page, "What is there?")


def test_a_question_is_text_whatever_it_says(open_page: OpenPage, served: str, clip: Path) -> None:
    page = open_page(served)
    watched(page, clip)
    question = "<img src=x onerror=alert(1)> ${1+1} {{value}}"
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    page.wait_for_selector("#conversation article.done")
    assert page.inner_text("#conversation .question") == question


def test_keys_reach_the_question_and_show_themselves(open_page: OpenPage, served: str) -> None:
    page = open_page(served)
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.wait_for_selector("#status .empty")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.closest('#question') !== null")
    for _ in range(40):  # whatever has the focus shows it
        page.keyboard.press("Tab")
        assert page.evaluate("""(() => { const node = document.activeElement;
            return node === document.body || getComputedStyle(node).outlineStyle !== 'none' })()""")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.locator("#keys dl").is_visible()
    page.keyboard.press("u")
    while not choosers:
        page.wait_for_timeout(50)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_text_can_be_read(open_page: OpenPage, served: str, clip: Path, scheme: str, width: int
                                                 ) -> None:
    page = open_page(served, width=width, height=844, color_scheme=scheme)
    watched(page, clip)
    ask(page, "What is there?")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    found = json.loads(page.evaluate(LOW_CONTRAST))
    assert found == []


LOW_CONTRAST = """(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.querySelectorAll('#head *, #note *, #page *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.offsetParent || node.disabled) continue;
    const pair = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) low.push(`${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return JSON.stringify(low);
})()"""
