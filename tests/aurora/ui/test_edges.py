"""What is no video, odd text, keys, and how the page looks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from .conftest import add, ask, watched

pytest.importorskip("gradio")
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.usefixtures("no_films")]
OpenPage = Callable[..., Any]


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
