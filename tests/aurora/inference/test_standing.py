"""Standing questions about a film that grows."""

from __future__ import annotations

import pytest

from aurora.errors import AuroraError
from aurora.inference.standing import Alert, StandingQuestion, says_yes
from aurora.inference.video_model import VideoModel


class Growing:
    """A film that is asked at a given second, with what it answers from which second on."""

    def __init__(self, answers: dict[float, str]) -> None:
        self.answers, self.seconds, self.frames, self.asked = answers, 0.0, 0, []

    def ask(self, question, options):
        self.asked.append(self.seconds)
        return next(answer for since, answer in reversed(self.answers.items()) if self.seconds >= since)


def watched(film, standing, until, step=1.0):
    """The alerts while the film grows."""
    for number in range(int(until / step) + 1):
        film.frames, film.seconds = number + 1, number * step
        if (alert := standing.check(film)) is not None:
            yield alert


def test_it_is_asked_every_so_many_seconds_of_the_film():
    film = Growing({0.0: "no"})
    assert list(watched(film, StandingQuestion("Is it red?", every_seconds=5), 21)) == []
    assert film.asked == [0, 5, 10, 15, 20]


def test_frames_that_come_late_are_not_made_up_for():
    film = Growing({0.0: "no"})
    list(watched(film, StandingQuestion("Is it red?", every_seconds=5), 60, step=7))
    assert film.asked == [0, 7, 14, 21, 28, 35, 42, 49, 56]


def test_only_a_change_to_yes_is_told_with_its_second():
    film = Growing({0.0: "no", 10.0: "Yes, it is.", 20.0: "no", 30.0: "yes"})
    assert list(watched(film, StandingQuestion("Is it red?", every_seconds=2), 40)) == [
        Alert(10.0, "Is it red?", "Yes, it is."), Alert(30.0, "Is it red?", "yes")]


def test_what_is_wanted_may_be_anything():
    film = Growing({0.0: "one", 3.0: "two"})
    standing = StandingQuestion("How many?", every_seconds=1, wanted=lambda answer: answer == "two")
    assert [alert.seconds for alert in watched(film, standing, 10)] == [3.0]


@pytest.mark.parametrize(("answer", "expected"), [("yes", True), (" Yes.", True), ('"YES", it is', True), ("no", False),
                                                  ("yesterday", False), ("", False), ("I say yes", False)])
def test_an_answer_says_yes_where_it_begins_with_it(answer, expected):
    assert says_yes(answer) is expected


@pytest.mark.parametrize(("question", "every"), [(" ", 5), ("Is it?", 0), ("Is it?", float("nan"))])
def test_what_cannot_be_asked_is_refused(question, every):
    with pytest.raises(AuroraError, match="a standing question is"):
        StandingQuestion(question, every_seconds=every)


def test_a_film_answers_a_standing_question_as_it_answers_any(make_model, make_config, video):
    model, told = VideoModel(make_model(), make_config(prompt={"name": "generic"})), []
    standing = StandingQuestion("Is it red?", every_seconds=1.0, wanted=lambda answer: told.append(answer) or True)
    alerts = [alert for film in model.watching(str(video), fps=8.0) if (alert := standing.check(film))]
    assert len(alerts) == 1
    assert alerts[0].answer == told[0] == model.watch(str(video), fps=8.0, stop=1.0).ask(
        "Is it red?", options=standing.options)
