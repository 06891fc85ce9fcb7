from __future__ import annotations

from typing import Any

import pytest

from aurora.ui import views

EVIL = "<img src=x onerror=alert(1)>"
FILM: dict[str, Any] = {
    "id": "film_0", "name": EVIL, "status": "ready", "frames": 1200, "seconds": 61.0, "progress": 1.0, "error": None,
    "state_bytes": 13_400_000, "settings": {"keep_ratio": 0.1, "merge": {"name": "tome"}, "sort": {"name": "size"}},
}


@pytest.mark.parametrize("shown", [
    views.film(FILM, 58), views.film(FILM | {"status": "watching", "progress": 0.5}, None),
    views.film(FILM | {"status": "failed", "error": EVIL}, None),
    views.film(FILM | {"warnings": [EVIL]}, 1), views.problem(EVIL), views.busy(EVIL),
    views.timeline([{"seconds": 0.0, "url": EVIL}]),
    views.exchange({"question": EVIL, "answer": EVIL, "state": "done", "took": EVIL}),
    views.exchange({"question": EVIL, "answer": "", "state": "failed", "error": EVIL}), views.no_figure(EVIL),
])
def test_what_others_said_is_never_markup(shown: str) -> None:
    assert "<img src=x" not in shown and "&lt;img src=x" in shown


def test_a_film_tells_what_was_read_and_what_is_kept() -> None:
    shown = views.film(FILM, 58)
    for part in ("1,200 frames, 1:01", "69,600 (58 a frame)", "13.4 MB", "keep ratio 0.1, tome, size"):
        assert part in shown


def test_a_film_that_is_ready_tells_what_else_is_to_be_known() -> None:
    shown = views.film(FILM | {"warnings": ["one was read every 3 s"]}, 58)
    assert "One was read every 3 s." in shown and "1,200 frames" in shown


def test_how_far_a_film_was_watched_is_a_progress_bar() -> None:
    shown = views.film(FILM | {"status": "watching", "progress": 0.25}, None)
    assert 'role="progressbar"' in shown and 'aria-valuenow="25"' in shown and "(25 %)" in shown


def test_questions_of_blocks_world_are_suggested_for_the_shipped_model_alone() -> None:
    assert views.conversation([], True, shipped=True).count("data-question") == len(views.QUESTIONS)
    assert "data-question" not in views.conversation([], True)
    assert "Blocks world" in views.note({"shipped": True}) and not views.note({"shipped": False})


def test_a_growing_film_of_unknown_length_has_no_percentage() -> None:
    shown = views.film(FILM | {"status": "live", "progress": None}, None)
    assert "%" not in shown.partition("style")[0] and "aria-valuenow" not in shown
