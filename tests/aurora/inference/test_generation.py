from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora.errors import AuroraError
from aurora.inference.generation import Generation, TextStream, complete, filter_logits, next_tokens, stream
from aurora.inference.reading import blank, fork, read_texts
from aurora.model import AuroraModel
from aurora.registry import TOKENIZER

BYTES = TOKENIZER.build({"name": "bytes"})
WORLD = TOKENIZER.build({"name": "rwkv_world"})


def reported(ids: list[int], stops: tuple[str, ...] = (), tokenizer=BYTES, shown: tuple[str, ...] = ()) -> list[str]:
    text = TextStream(tokenizer, stops, shown)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces
    return [*pieces, text.finish()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tokenizer", [BYTES, WORLD], ids=["bytes", "rwkv_world"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_the_pieces_of_a_stream_are_the_text(tokenizer, text: str) -> None:
    assert "".join(reported(tokenizer.encode(text), tokenizer=tokenizer)) == text


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=24))
def test_bytes_that_are_no_text_come_out_as_one_decoding_would_give_them(raw: bytes) -> None:
    assert "".join(reported([byte + 1 for byte in raw])) == raw.decode("utf-8", errors="replace")


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab\n", max_size=16), stop=st.text("ab\n", min_size=1, max_size=4))
def test_nothing_of_a_stop_string_is_ever_shown(text: str, stop: str) -> None:
    assert "".join(reported(BYTES.encode(text), (stop,))) == text.split(stop)[0]


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab \n", max_size=16), stop=st.text("ab \n", min_size=1, max_size=3))
def test_a_stop_string_of_the_user_is_not_matched_against_white_space_that_is_never_shown(text: str, stop: str) -> None:
    assert "".join(reported(BYTES.encode(text), shown=(stop,))).lstrip() == text.lstrip().split(stop)[0]


def test_the_stop_of_the_prompt_ends_an_answer_that_has_not_begun() -> None:
    assert "".join(reported(BYTES.encode("\n\nwhite square"), ("\n\n",), shown=(" ",))) == ""


def test_an_answer_stops_behind_the_white_space_that_it_begins_with(model: AuroraModel) -> None:
    runner, logits = model.backbone.runner(), model.backbone.logits
    memory = read_texts(runner, blank(runner, 1), [model.tokenizer.encode("What is it?")])
    ids = iter(model.tokenizer.encode(" white square"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backbone, "logits", lambda hidden: torch.zeros_like(logits(hidden)).index_fill_(
            -1, torch.tensor([next(ids)]), 1.0))
        assert complete(model, runner, memory, Generation(stop=(" ",))) == ["white"]


def test_a_character_is_shown_once_it_is_whole() -> None:
    assert reported(BYTES.encode("é🙂")) == ["", "é", "", "", "", "🙂", ""]


def test_text_that_cannot_become_a_stop_string_is_shown_at_once() -> None:
    assert reported(BYTES.encode("a\nb"), ("\n\n",)) == ["a", "", "\nb", ""]


def test_the_first_of_several_stop_strings_ends_the_text() -> None:
    assert "".join(reported(BYTES.encode("one END two STOP"), ("STOP", "END"))) == "one "


def test_the_end_of_text_ends_the_text_and_releases_what_was_held() -> None:
    assert reported([*BYTES.encode("a\n"), BYTES.end_of_text, *BYTES.encode("b")], ("\n\n",)) == ["a", "", "\n"]


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert next_tokens(logits, [Generation()] * 2, [generator(), generator()]).tolist() == [1, 0]


def test_top_k_leaves_k_tokens() -> None:
    kept = filter_logits(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), [Generation(temperature=1.0, top_k=2)])
    assert torch.isfinite(kept).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_top_p_leaves_the_fewest_tokens_that_reach_it(top_p: float, kept: int) -> None:
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    assert torch.isfinite(filter_logits(logits, [Generation(temperature=1.0, top_p=top_p)])).sum() == kept


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(filter_logits(logits, [Generation(temperature=0.5)]), logits * 2)


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-9])
@pytest.mark.parametrize("limits", [{}, {"top_k": 3, "top_p": 0.9}])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature: float, limits: dict) -> None:
    logits = torch.tensor([[-80.0, 3.0, 300.0, 2.0]])
    assert next_tokens(logits, [Generation(temperature=temperature, **limits)], [generator()]).tolist() == [2]


def test_logits_that_are_not_numbers_are_an_error_before_anything_is_drawn() -> None:
    logits, drawn = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), generator()
    with pytest.raises(ArithmeticError, match="not numbers"):
        next_tokens(logits, [Generation(temperature=1.0)] * 2, [drawn, generator()])
    assert torch.equal(drawn.get_state(), generator().get_state())


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(4000, -1)
    one = generator()
    drawn = next_tokens(logits, [Generation(temperature=1.0)] * 4000, [one] * 4000)
    frequencies = drawn.bincount(minlength=3) / 4000
    torch.testing.assert_close(frequencies, torch.tensor([0.1, 0.6, 0.3]), atol=0.03, rtol=0)


def test_every_sequence_draws_by_its_own_options_whatever_its_company() -> None:
    logits = torch.randn(4, 50, generator=generator())
    options = [Generation(), Generation(temperature=0.7, top_k=5), Generation(temperature=2.0, top_p=0.6),
               Generation(temperature=1.3)]
    together = next_tokens(logits, options, [generator() for _ in options])
    alone = [next_tokens(logits[row:row + 1], [one], [generator()]) for row, one in enumerate(options)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert torch.equal(filter_logits(logits[1:], options[1:]),
                       torch.cat([filter_logits(logits[row:row + 1], [options[row]]) for row in (1, 2, 3)]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("",)}, "empty stop string"),
        ({"stop": "END"}, "stop is 'END'; it must be a list"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; it must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, named: str) -> None:
    with pytest.raises(AuroraError, match=named):
        Generation(**options)


TEXTS = ["What is it?", "Where?", "Is anything moving to the left?"]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_company_changes_no_answer(model: AuroraModel, temperature: float) -> None:
    options = Generation(max_new_tokens=24, temperature=temperature, seed=5)
    runner = model.backbone.runner()
    together = read_texts(runner, blank(runner, 3), [model.tokenizer.encode(text) for text in TEXTS])
    alone = ["".join(stream(model, runner, fork(together, [s]), options)) for s in range(3)]
    assert complete(model, runner, together, options) == alone


def test_a_finished_sequence_leaves_the_others_alone(model: AuroraModel) -> None:
    runner = model.backbone.runner()
    memory = read_texts(runner, blank(runner, 3), [model.tokenizer.encode(text) for text in TEXTS])
    free = complete(model, runner, memory, Generation(max_new_tokens=24))
    stop = free[0][3:5]
    cut = [answer.split(stop)[0] for answer in free]
    assert len({len(answer) for answer in cut}) > 1  # they end at different steps
    assert complete(model, runner, memory, Generation(max_new_tokens=24, stop=(stop,))) == cut


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(model: AuroraModel) -> None:
    runner = model.backbone.runner()
    memory = read_texts(runner, blank(runner, 1), [model.tokenizer.encode("What is it?")])
    answers = ["".join(stream(model, runner, memory, Generation(max_new_tokens=24, temperature=1.0, seed=seed)))
               for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_no_more_tokens_are_made_than_asked_for(model: AuroraModel) -> None:
    runner = model.backbone.runner()
    memory = read_texts(runner, blank(runner, 1), [model.tokenizer.encode("What is it?")])
    assert len("".join(stream(model, runner, memory, Generation(max_new_tokens=3)))) <= 3
