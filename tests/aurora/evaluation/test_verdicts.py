from __future__ import annotations

import pytest

from aurora.evaluation.verdicts import KINDS, messages, prompt_hash, read_verdict

YES4, NO1 = (True, 4.0), (False, 1.0)


@pytest.mark.parametrize(("text", "verdict"), [
    ("{'pred': 'yes', 'score': 4}", YES4),
    ('{"pred": "yes", "score": 4}', YES4),
    ('{"score": 4, "pred": "yes"}', YES4),
    ("```python\n{'pred': 'yes', 'score': 4}\n```", YES4),
    ('```json\n{\n  "pred": "no",\n  "score": 1\n}\n```', NO1),
    ("```\n{'pred': 'no', 'score': 1}```", NO1),
    ("Here is my evaluation:\n\n{'pred': 'yes', 'score': 4}\n\nBoth say that it is red.", YES4),
    ("{'pred': 'yes', 'score': '4'}", YES4),
    ('{"pred": "Yes", "score": 4.0}', YES4),
    ("{'pred': 'YES', 'score': 4.}", YES4),
    ('{"pred": true, "score": 4}', YES4),
    ("{pred: yes, score: 4}", YES4),
    ("{“pred”: “yes”, “score”: 4}", YES4),
    ("{‘pred’: ‘no’, ‘score’: 1}", NO1),
    (r'"{\"pred\": \"yes\", \"score\": 4}"', YES4),
    ("**pred**: yes\n**score**: 4", YES4),
    ("pred: no\nscore: 1", NO1),
    ("{'pred': 'no', 'score': 1, 'reason': 'The answer says yes where no is right.'}", NO1),
    ('[{"pred": "no", "score": 1}]', NO1),
    ('{"result": {"prediction": "no", "score": 1}}', NO1),
    ("<think>'pred': 'yes'? No: the colour differs.</think>{'pred': 'no', 'score': 1}", NO1),
    ("The user wants a verdict…</think>\n{'pred': 'yes', 'score': 4}", YES4),
    ("{'pred': 'yes', 'score': 4}\n{'pred': 'yes', 'score': 4}", YES4),
    ("{'pred': 'yes'}", (True, None)),
    ("{'pred': 'yes', 'score': 9}", (True, None)),
    ("{'pred': 'yes', 'score': -1}", (True, None)),
    ("{'pred': 'yes', 'score': 'high'}", (True, None)),
    ("{'pred': 'yes', 'score': 4, 'score': 2}", (True, None)),
    ("yes", (True, None)),
    ("pred: **yes**, score: 4", YES4),
    ("pred: no (another colour)\nscore: 1", NO1),
    ("pred: yes score: 4", YES4),
    ("{'pred': 'Yes.', 'score': 4}", YES4),
    ("**No.**", (False, None)),
])
def test_a_verdict_is_read_in_every_notation(text, verdict) -> None:
    assert read_verdict(text) == verdict


@pytest.mark.parametrize("text", [
    "", "  \n", "I cannot help with that.", "{'score': 4}", "{'pred': 'maybe', 'score': 3}", "{'pred': '', 'score': 0}",
    "{'pred': 'yes' or 'no', 'score': 0}", "{'pred': 'yes/no', 'score': 4}", "{'pred': ", "yes and no", "nothing",
    "{'pred': 'yes', 'score': 4}, or rather {'pred': 'no', 'score': 1}", "Yes, I can evaluate this. Which video is it?",
    "No problem! Please give me the pair.", "{'pred': 'nobody', 'score': 0}", "<think>{'pred': 'yes', 'score': 4}",
    "{'expred': 'yes'}", "Ja.", "{'pred': 'yes and no'}", "{'pred': 'no way'}", "{'pred': 'no, yes'}", "pred: no, yes",
    "{'pred': 'yes, no', 'score': 3}", "pred: no way", "pred: yes and no", "{'pred': 'no', 'yes'}",
    "Correct Answer: no\nPrediction: no\nThe prediction matches the answer. Score: 5",
    "Prediction: yes\nCorrect answer: no\nThey do not match.",
    '{"correct answer": "no", "prediction": "no", "score": 5}',
])
def test_what_is_no_verdict_is_not_taken_for_one(text) -> None:
    assert read_verdict(text) is None


def test_facts_stand_in_the_prompt_as_they_are() -> None:
    system, user = messages("match", question="Who {answer}?", answer="a {prediction}", prediction="'{question}'")
    assert system["role"] == "system" and user["role"] == "user"
    asked = "Question: Who {answer}?\nCorrect Answer: a {prediction}\nPredicted Answer: '{question}'\n"
    assert asked in user["content"]
    assert user["content"].endswith("{'pred': 'yes', 'score': 4.8}.")


def test_every_kind_of_judging_has_a_hash_of_its_own() -> None:
    assert len({prompt_hash(kind) for kind in KINDS}) == len(KINDS) == 2
