from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aurora.errors import AuroraError
from aurora.evaluation.prompts import multiple_choice, option_label
from aurora.evaluation.scoring import chosen_option, score_options
from aurora.inference.film import Film
from aurora.inference.reading import fork
from aurora.inference.video_model import VideoModel
from aurora.model import AuroraModel

OPTIONS = ("a ball", "red", "dog house", "The dog.")
DECORATIONS = (
    "{}", "({})", "[{}]", "{{{}}}", "**{}**", "**({})**", "(**{}**)", "__{}__", "*{}*", "`{}`", '"{}"', "“{}”", "'{}'",
    "{})", "{}.", "{}:", "{}!", "**{}.**", "**{})**", "({}).", r"\boxed{{{}}}", r"$\boxed{{{}}}$",
    r"\boxed{{\text{{{}}}}}", r"$\boxed{{\textbf{{({})}}}}$", "<answer>{}</answer>", "# {}", "- {}", "> **{}**",
    "（{}）", "option {}", "Option {}", "Option ({})", "choice {}", "Choice: {}", "Answer: {}", "answer: {}",
    "ANSWER: {}", "Ans: {}", "Answer {}", "Answer = {}", "Answer – {}", "Answer:\n{}", "Answer\n{}", "**Answer:** {}",
    "**Answer: {}**", "### Answer\n{}", "The answer is {}", "The answer is {}.", "the answer is: {}",
    "The answer is **{}**.",
    "The answer is ({}).", "The answer is option {}.", "The correct answer is {}", "The correct option is {}.",
    "The best answer would be {}", "The most likely answer is {}", "My answer is {}", "Final answer: {}",
    "Answer: the correct option is {}", "Therefore, the answer is {}.", "So the answer is {}", "Best option: ({})",
    "Answer: ({}), because it is", "The answer is {} because I saw it", "{} is correct.", "{} is the correct answer.",
    "({}) is right", "{}\n", "\n\n{}", " {} ", "{}\n\nIt can be seen in the video.", "Answer: {}\nIt can be seen.",
    "Something moves. The answer is ({}).", "Something moves.\n\nAnswer: {}", "Something moves, so the answer is: {}",
    "<think>A or C? It is (D).</think>\n\n{}", "<think>The answer is A.</think>Answer: {}", "{}<|im_end|>",
    "{}</s>", "({})<|endoftext|>\n", "{}</answer>", '{{"answer": "{}"}}', "{{'answer': '{}'}}",
    '```json\n{{"answer": "{}"}}\n```',
    "{}。", "{}、", "答案：{}", "正确答案是{}", "选{}", "정답은 {}", "정답은 {}입니다.", "答えは{}です。", "It is {}.",
    "It's ({}).", "I choose {}.", "I pick option {}.",
)
# with the option's text behind or before the letter
WITH_TEXT = ("({}) {text}", "{} {text}", "{}. {text}", "{}) {text}", "{}){text}", "{}: {text}", "{} - {text}",
             "{}\n{text}", "{}, {text}", "{} ({text})", "[{}] {text}", "**{}**: {text}", "**{}. {text}**",
             "**({}) {text}**", "({}) **{text}**", "({}): {text}.", "({}) {text}, as can be seen (s).",
             "The answer is ({}) {text}", "Answer: {}. {text}", "Option {}: {text}", "{text} ({})",
             "The answer is {text} ({}).", "{text}", "The answer is {text}", "Answer: {text}.", "**{text}**",
             '"{text}"', "{text}!", "{}：{text}", "{text} (option {})", "<think>(A)?</think>{}. {text}",
             "{text}<|im_end|>", "It is ({}) {text}.", '{{"answer": "{text}"}}', "答案：{}。{text}")
TEXTS = ("red", "The person(s) leave", "Vitamin C", "Answering the phone", "Option trading",
         "He (Bob) waits: one (1) hour", "a man", "A man and a dog", "plan B", "It is the best answer",
         "Type (B) blood", "8:30", "a)", "U.S.A.", "No, neither or both")


@pytest.mark.parametrize("form", DECORATIONS)
def test_a_letter_is_read_as_people_write_it(form: str) -> None:
    assert [chosen_option(form.format(letter), OPTIONS) for letter in "ABCD"] == [0, 1, 2, 3]


ALONE = ("{}", "- {}", "# {}", "{}!", "{}、", "{}<|im_end|>", "{}</s>", "{}</answer>",
         "<think>A or C? It is (D).</think>\n\n{}", "It is {}.", "I choose {}.")
"""Where a small "a" may be an article of which the rest was cut off."""


@pytest.mark.parametrize("form", [form for form in DECORATIONS if form.strip() not in {
    *ALONE, "{} is correct.", "{} is the correct answer.", "{}\n\nIt can be seen in the video."}])
def test_a_small_letter_is_read_where_something_says_that_it_is_one(form: str) -> None:
    assert [chosen_option(form.format(letter), OPTIONS) for letter in "abcd"] == [0, 1, 2, 3]


@pytest.mark.parametrize("form", ALONE)
def test_a_small_letter_alone_is_read_unless_it_may_be_an_article(form: str) -> None:
    assert [chosen_option(form.format(letter), OPTIONS) for letter in "abcd"] == [None, 1, 2, 3]


@pytest.mark.parametrize("form", WITH_TEXT)
@pytest.mark.parametrize("text", TEXTS)
def test_a_letter_with_its_text_is_read(form: str, text: str) -> None:
    options = ["blue", "something else", "nothing"]
    for index, letter in enumerate("ABCD"):
        assert chosen_option(form.format(letter, text=text), [*options[:index], text, *options[index:]]) == index


@pytest.mark.parametrize(
    ("answer", "options", "chosen"),
    [
        ("Answering the phone", ("Leaving", "Answering the phone"), 1),
        ("Answering the phone", ("the phone", "a phone"), None),
        ("Answer the phone", ("the phone", "a phone"), None),
        ("Option B", ("Option A", "Option C", "Option B"), 2),
        ("The answer is Option C", ("Option A", "Option C", "Option B"), 1),
        ("(A) The person(s) leave", ("The person(s) leave", "Nobody leaves"), 0),
        ("(A) The person(s) left", ("The person(s) leave", "Nobody leaves", *"xyzuvw" * 2, "s"), 0),
        ("A. Smith", ("C. Lee", "A. Smith", "B. Jones"), 1),
        ("B. Jones", ("C. Lee", "A. Smith", "B. Jones"), 2),
        ("**B. Jones**", ("C. Lee", "A. Smith", "B. Jones"), 2),
        ("(A) B. Jones", ("B. Jones", "A. Smith"), 0),
        ("A. B. Jones", ("B. Jones", "A. Smith"), 0),
        ("A", ("B", "A", "AB"), 1),
        ("AB", ("B", "A", "AB"), 2),
        ("(A)", ("B", "A", "AB"), 0),
        ("A dog", ("a cat", "dog"), 1),
        ("(B) blue", ("(A) red", "(B) blue"), 1),
        ("(A) blue", ("red", "blue"), 1),  # the text wins
        ("(A) a dark blue", ("red", "blue"), 0),
        ("red", ("Red.", "red"), 1),
        ("C#", ("C", "C#", "C++"), 1),
        ("C", ("C#", "C++", "C"), 2),
        ("The answer is red", OPTIONS, 1),
        ("a  ball", OPTIONS, 0),
        ("the dog", OPTIONS, 3),
        ("２", ("1", "2"), 1),
        ("The man looks at (A). Answer: B", OPTIONS, 1),
        ("The answer is not clear. The answer is B", OPTIONS, 1),
        ("It is a ball.", OPTIONS, 0),
        ("(B) no", ("yes", "no"), 1),
        ("(B) is wrong", ("is right", "is wrong"), 1),
        ("(B) Cannot be opened", ("Open", "Cannot be opened any more"), 1),
        ("(B) Not blue but red", OPTIONS, 1),
        ("(B) No ball is red", OPTIONS, 1),
        ("(B) red, which is not blue", OPTIONS, 1),
        ("b", ("x", "y"), 1),
        ("d\n", OPTIONS, 3),
    ],
)
def test_the_whole_text_of_an_option_wins(answer: str, options: tuple[str, ...], chosen: int | None) -> None:
    assert chosen_option(answer, options) == chosen


@pytest.mark.parametrize(
    "answer",
    ["", "   ", "*", "A man opens the door.", "The man picks up a cup", "reddish", "red ball", "ball", "dog", "a", "e",
     "i", "ab", "(E) none", "Z", "I think it is (B)", "(AB)", "AB", "A, because it is red", "A person answers: no", 
     "Because", "I don't know", "Answer: I don't know", "The answer is a man", "Answer: a small ball",
     "I don't think the answer is B.", "Not B", "Options", "The options are unclear", "i.e. red ones",
     "(A) or (B)", "A) or B)", "A or B", "A and B", "A, B", "A/B", "A & B", "both A and B", "A. B. C. D.", "A B C D",
     "A\nB\nC\nD", "(A)(B)", "(A) red (B) blue", "A. x\nB. y", "a) x b) y", "(A) or (E)", "**A** or **B**",
     "Answer: A or B", "Answer: A, B", "The answer is (A) and (C).", "The answer is A. The answer is B.",
     "Answer: A\nAnswer: B", "Option A, option B", r"\boxed{A} or \boxed{B}", "(A) is wrong, (B) is right",
     "(B) is wrong", "B) is incorrect.", "B. is wrong", "**B** is wrong", "The answer (B) is wrong.",
     "(B) cannot be right", "B) not correct", "(B) no", "(B) no.", "B. red is wrong", "(B) isn't right", "(B) is false",
     "(B) is not the answer", "(B) is clearly wrong, since it rolls", "Option (B) would be wrong.",
     "(B) is the wrong one", "(B): incorrect", "(B), which is wrong", "<think>B</think>", "<think>The answer is B.",
     "B</s>A", '{"answer": "E"}', '{"answer": "A or B"}', "It is not B.",
     "It is a", "It is a man", "It is A man", "I choose a man", "I choose not B", "答案：A、B",
     "选", "(A). It is B.", "A\nI choose B"],
)
def test_what_names_no_single_option_is_not_read_as_one(answer: str) -> None:
    assert chosen_option(answer, OPTIONS) is None


def test_a_text_that_two_options_share_names_neither() -> None:
    assert chosen_option("RED", ("red", "Red.", "blue")) is None


words = st.sampled_from(["(b)", "(a)", "a", "A", "B", "B.", "a)", "or", "and", "the", "answer", "is", "red", "Option",
                         "person(s)", "(s)", "C:", "8", "U.S.", "\"red\""])
sentences = st.lists(st.lists(words, min_size=1, max_size=4).map(" ".join), min_size=2, max_size=8,
                     unique_by=str.casefold)
texts = st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=8,
                 unique_by=str.strip)  # an answer is compared without the white space around it
unhurried = settings(deadline=None)


@unhurried
@given(st.one_of(texts, sentences), st.data())
def test_the_whole_text_of_any_option_chooses_it(options: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    assert chosen_option(options[index], options) == index
    assert chosen_option(f" {options[index]}\n", options) == index


@unhurried
@given(sentences, st.sampled_from(DECORATIONS), st.data())
def test_a_decorated_letter_chooses_its_option(options: list[str], form: str, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    answer = form.format("ABCDEFGH"[index])
    # "B" is also the option "B."
    said = " ".join(answer.casefold().split())
    assume(not any(option.casefold().strip(".") in said for option in options))
    assert chosen_option(answer, options) == index


INLINE = [form for form in DECORATIONS if form not in ("# {}", "- {}") and "because" not in form]
ENDING = [form for form in INLINE if not form.rstrip(".").endswith(("right", "correct", "answer", "seen", "video"))]


@unhurried
@given(st.permutations("ABCD"), st.sampled_from(ENDING), st.sampled_from(INLINE),
       st.sampled_from([" ", ", ", " or ", " and ", "/", " / ", "\n", ". ", "; ", " nor "]))
def test_two_letters_choose_none(letters: list[str], first: str, second: str, between: str) -> None:
    # "A cat moves. The answer is (B).", "Answer: A cat moves. The answer is (B).": an article
    assume(letters[0] != "A" or not first.endswith("{}") or between != " ")
    assert chosen_option(first.format(letters[0]) + between + second.format(letters[1]), OPTIONS) is None


def test_an_article_before_a_sentence_is_no_letter() -> None:
    assert chosen_option("A Something moves. The answer is (B).", OPTIONS) == 1


@unhurried
@given(st.text(), st.lists(st.text(), max_size=5))
def test_any_answer_is_read_without_an_error(answer: str, options: list[str]) -> None:
    chosen = chosen_option(answer, options)
    assert chosen is None or 0 <= chosen < len(options)


@pytest.mark.parametrize("form", ["({})", "{})", "{}.", "**{}**", "The answer ({})", "Option ({})", "({}) {text}",
                                  "{}: {text}"])
@pytest.mark.parametrize("denial", ["is wrong", "is incorrect.", "is not right", "isn't the answer",
                                    "cannot be correct", "was clearly wrong", "is not it, I think",
                                    "is the wrong answer"])
def test_an_option_that_is_taken_back_is_not_chosen(form: str, denial: str) -> None:
    for index, letter in enumerate("ABCD"):
        assert chosen_option(f"{form.format(letter, text=OPTIONS[index])} {denial}", OPTIONS) is None


def test_every_label_is_read_as_its_option() -> None:
    assert [chosen_option(option_label(index), [""] * 26) for index in range(26)] == list(range(26))


# ---- likelihood


@pytest.fixture
def asked(model: AuroraModel, config: Any, video: Path) -> Film:
    return VideoModel(model, config).watch(video, prompt="sandwich")


def slow_log_prob(film: Film, question: str, option: str) -> float:
    """One token after the other from the state after the question, by steps of the modules."""
    memory = film.read_all([question])
    backbone, total = film.model.model.backbone, 0.0
    hidden, state = memory.last_hidden(), memory.state
    for token in film.model.model.tokenizer.encode(f" {option}"):
        total += float(torch.log_softmax(backbone.logits(hidden).double(), -1)[0, token])
        hidden, state = backbone.step(backbone.embed(torch.tensor([token])), state)
    return total


@torch.inference_mode()
def test_likelihoods_are_those_of_one_token_after_the_other(asked: Film) -> None:
    question = multiple_choice("What?", OPTIONS)
    options = [*OPTIONS, "b", "a much longer option that is read beside short ones, é 🙂"]
    scores = score_options(asked.model.model, asked.model.runner, asked.read_all([question]), options)
    for option, score in zip(options, scores, strict=True):
        assert score.log_prob == pytest.approx(slow_log_prob(asked, question, option), rel=1e-4)
        assert score.tokens == len(f" {option}".encode())
        assert score.per_token == pytest.approx(score.log_prob / score.tokens)


def test_options_are_scored_alike_in_any_company(asked: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = asked.read_all(["What?", "Where?"])
    together = score_options(asked.model.model, asked.model.runner, fork(memory, [1]), OPTIONS)
    monkeypatch.setattr("aurora.evaluation.scoring.LOGIT_ROWS", 3)
    alone = [score_options(asked.model.model, asked.model.runner, asked.read_all(["Where?"]), [option])[0]
             for option in OPTIONS]
    assert [score.log_prob for score in together] == pytest.approx([score.log_prob for score in alone], rel=1e-4)


@pytest.mark.parametrize("prompt", ["sandwich", "generic", "image_first"])
@pytest.mark.parametrize("backbone", ["transformer", "rwkv7"])
def test_every_form_and_backbone_can_be_scored(make_model: Callable[..., AuroraModel], make_config: Any, video: Path,
                                               prompt: str, backbone: str) -> None:
    parts = {"prompt": {"name": prompt},
             "backbone": {"name": backbone, "hidden_size": 32, "layers": 2, "head_size": 16}}
    film = VideoModel(make_model(**parts), make_config(**parts)).watch(video, prompt=prompt)
    scores = score_options(film.model.model, film.model.runner, film.read_all(["What?"]), OPTIONS)
    with torch.inference_mode():
        assert [score.log_prob for score in scores] == pytest.approx(
            [slow_log_prob(film, "What?", option) for option in OPTIONS], rel=1e-4)


def test_a_choice_is_put_in_the_form_of_mvbench() -> None:
    assert multiple_choice("What colour is it?", ["red", "blue"]) == (
        "What colour is it?\nOption:\n(A) red\n(B) blue\nOnly give the best option."
    )


def test_there_is_no_letter_after_z() -> None:
    with pytest.raises(AuroraError, match="option 27"):
        option_label(26)


def test_one_option_is_no_choice() -> None:
    with pytest.raises(AuroraError, match="two or more"):
        multiple_choice("What colour is it?", ["red"])
