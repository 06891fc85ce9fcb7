"""`strict` on answers that fool the public scorers: articles, sentences, several letters, refusals, other scripts."""

from __future__ import annotations

import pytest

from aurora.evaluation.scoring import said_number, said_yes
from aurora.evaluation.summary import names_right_option
from aurora.interfaces import Item
from aurora.registry import BENCHMARK

CHOICE = Item("1", "v.mp4", "Which?", "a blue ball", ("red", "a blue ball", "Green", "A dog"), 1)

RIGHT = [
    "B", "B.", "(B)", "(b)", "b)", "B)", "B:", "**B**", "*B*", "`B`", "\"B\"", "'B'", "“B”", "[B]", "{B}", "<B>", "$B$",
    "\\boxed{B}", "\\text{B}", "<answer>B</answer>", "B\n", "\nB", "  B  ", "B. a blue ball", "(B) a blue ball",
    "B) a blue ball", "B: a blue ball", "B a blue ball", "a blue ball", "A blue ball.", "A BLUE BALL",
    "\"a blue ball\"", "a blue ball (B)", "B (a blue ball)", "The answer is B", "The answer is B.",
    "The answer is (B).", "Answer: B", "answer: b", "The correct answer is B.", "The best option is (B).", "Option B",
    "Option (B)", "My answer is B", "So the answer is B.", "The correct option is B: a blue ball.",
    "B\nIt is blue and round.", "The answer is B, because it is blue.", "B is correct.", "Best option: (B)",
    "The answer is: B", "Answer:\nB", "Ｂ", "（B）",
    "<think>A or C?</think>\n\nB", "B<|im_end|>", "B</s>", "b", '{"answer": "B"}', "B。", "B、", "B：a blue ball",
    "答案：B", "정답은 B", "It is B.", "I choose B.", "A blue ball (option B)",
]
WRONG = [
    # nothing at all, and what is not an answer
    "", " ", "\n\n", ".", "…", "()", "-", "?", "\u200b", "I don't know.", "I cannot answer that.",
    "Sorry, I can't see the video.", "As an AI model, I am not able to watch videos.", "Unable to determine.", "N/A",
    "None of the above", "All of the above", "Unknown", "It depends.", "Not enough information is given.",
    # articles and words that begin like a letter
    "A man opens the door.", "A", "a", "A man picks up a blue thing", "An apple", "Dog", "Dogs play with a ball",
    "Blue",
    "Ball", "Be careful", "Because it is so", "By the river", "Both", "Bob is there", "B-52 bombers fly", "B2", "2B",
    "Plan B was used", "Vitamin B", "Add a cup of milk", "C'est la vie", "D'accord", "A's", "I see a ball", "I",
    "Black", "CAB", "abcd", "The man picks up a cup", "The ball", "a ball", "blue ball and red ball", "a blue balloon",
    "not a blue ball", "It is not a blue ball", "B movies are shown",
    # several letters, or one that does not exist
    "A, B", "A or B", "A and B", "Both A and B", "B or C", "B/C", "B, C", "B and D", "(A) (B)", "(B) or (C)", "AB",
    "BC",
    "B C", "A B C D", "B? C?", "Either B or C", "B. or C.", "The answer is A or B", "The answer is B or C.", "B\nC",
    "E", "(E)", "E.", "The answer is F", "Z",
    # the other options
    "C", "(C)", "D", "C. Green", "red", "A dog", "A. red", "The answer is A.", "Not B, but C",
    # taken back
    "(B) is wrong", "B) is incorrect.", "B. is wrong", "**B** is wrong", "The answer (B) is wrong.",
    "(B) cannot be right", "B) not correct", "(B) no", "B. a blue ball is wrong",
    # other scripts
    "Б", "В", "Ответ: В", "β", "Β", "ب", "ב", "答案", "乙", "Ⓑ or Ⓒ", "二", "정답", "🅱", "𝐁 or 𝐂", "選項",
]


def test_the_table_is_long_enough() -> None:
    assert len(set(RIGHT + WRONG)) >= 100 and len(set(WRONG)) >= 100


@pytest.mark.parametrize("answer", RIGHT)
def test_a_letter_in_a_form_that_people_write_is_right(answer) -> None:
    assert names_right_option(CHOICE, answer) is True


@pytest.mark.parametrize("answer", WRONG)
def test_what_names_no_or_another_option_is_not_right(answer) -> None:
    assert not names_right_option(CHOICE, answer)


@pytest.mark.parametrize(("answer", "right"), [
    ("cat", True), ("Cat.", True), ("(A)", True), ("A", True), ("(C)", True), ("(C) cat", True), ("C. cat", True),
    ("(B)", False), ("dog", False), ("The answer is C.", True), ("(A) or (B)", None)])
def test_any_option_of_the_right_text_is_right(answer, right) -> None:
    """MVBench has questions with two equal options."""
    assert names_right_option(Item("1", "v.mp4", "Which?", "cat", ("cat", "dog", "cat"), 0), answer) is right


YES = ["Yes", "yes", "YES.", "Yes, they do.", "Yes, the step is done.", "**Yes**", "“Yes”", "The answer is yes.",
       "Answer: Yes", "\\boxed{Yes}", "Yes\n", "yes!",
       "<think>no</think>Yes", "Yes<|im_end|>", '{"answer": "Yes"}']
NO = ["No", "no.", "No, not yet.", "\"No\"", "The answer is no", "Answer: No.", "NO", "No\nIt is another step."]
NEITHER = ["", "Y", "N", "Yes and no", "Yes or no?", "No, or yes", "Not yet", "None", "Nobody", "Nope", "No-one",
           "Yesterday",
           "I think yes", "It does", "true", "1", "是", "да", "はい", "Sorry, I cannot say yes or no.", "Maybe",
           "yes/no"]


@pytest.mark.parametrize(("answer", "said"), [*((one, True) for one in YES), *((one, False) for one in NO),
                                              *((one, None) for one in NEITHER)])
def test_yes_and_no_stand_at_the_beginning_and_alone(answer, said) -> None:
    assert said_yes(answer) is said


NUMBERS = [("3", 3), ("3.", 3), ("three", 3), ("Three times", 3), ("3 times", 3), ("They jump 3 times in total.", 3),
           ("**3**", 3), ("The count is 12.", 12), ("0", 0), ("zero", 0), ("\\boxed{3}", 3), ("3 (three)", 3),
           ("<think>2 or -2?</think>3", 3), ("3<|im_end|>", 3)]
NO_NUMBER = ["", "between 1 and 2", "1-2", "1 or 2", "one or two", "3.5", "1,000", "-3", "v2", "2nd", "3/4", "1 2",
             "many",
             "none", "several times", "half", "H2O", "once", "3x", "I cannot count.",
             "one hundred", "twenty one", "twenty-one", "No one", "two dozen", "one and a half", "nineteen"]


@pytest.mark.parametrize(("answer", "said"), [*NUMBERS, *((one, None) for one in NO_NUMBER)])
def test_a_count_is_one_whole_number(answer, said) -> None:
    assert said_number(answer) == said


def test_an_empty_answer_is_wrong_and_stays_in_the_denominator() -> None:
    """lmms-eval leaves the empty ones out, and calls one right answer of three 100 %."""
    benchmark = BENCHMARK.build({"name": "mvbench", "subtasks": ["action_count"]})
    items = [Item(str(n), "v.mp4", "Which?", "red", ("red", "blue"), 0, "action_count") for n in range(3)]
    answers = {"0": "(A)", "1": "", "2": None}
    strict, public = (benchmark.score(items, answers, scorer) for scorer in ("strict", "lmms_compat"))
    assert (strict["score"], strict["n"], strict["unparsed"]) == (pytest.approx(100 / 3), 3, 1)
    assert (public["score"], public["lmms_eval"]) == (100.0, 100.0)
