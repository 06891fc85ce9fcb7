"""Caption metrics: equal to pycocoevalcap's with Java, close to them without."""

import json
import random
import shutil
from pathlib import Path

import pytest

from aurora.errors import AuroraError
from aurora.evaluation import captions, ptb
from aurora.evaluation.captions import METRICS, CaptionScores, caption_metrics, java_tokens

pytest.importorskip("pycocoevalcap")

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")
HARD = [tuple(json.loads(line)) for line in
        (Path(__file__).parent / "files/ptb_strings.jsonl").read_text(encoding="utf-8").splitlines()]
Pairs = dict[str, tuple[str, list[str]]]


def corpus(number: int) -> Pairs:
    """Captions made of hard strings, with words changed; some are empty, and some have line breaks."""
    draw = random.Random(0)
    texts = [text for text, _ in HARD if len(text.split()) > 4]

    def changed() -> str:
        words = draw.choice(texts).split()
        words[draw.randrange(len(words))] = draw.choice(["dog", "cat", "man", "red", "isn't"])
        return " ".join(words)

    pairs: Pairs = {}
    for item in range(number):
        references = [changed() for _ in range(draw.randint(1, 5))]
        pairs[str(item)] = (draw.choice([references[0], changed(), changed()]), references)
    return {**pairs, "empty": ("", ["A dog runs."]), "broken": ("A dog\r\nruns\u2028fast.", ["A dog runs fast."])}


def test_the_python_tokenizer_splits_98_percent_of_hard_strings_as_java_does() -> None:
    equal = sum(ptb.tokenize(text) == words for text, words in HARD)
    assert len(HARD) > 900
    assert equal / len(HARD) >= 0.98


@needs_java
@pytest.mark.process
def test_the_stored_words_of_hard_strings_are_javas() -> None:
    assert java_tokens([text for text, _ in HARD]) == [words for _, words in HARD]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return corpus(60)


@pytest.fixture(scope="module")
def with_java(pairs: Pairs) -> CaptionScores:
    return caption_metrics(pairs, "java", resamples=50)


@needs_java
@pytest.mark.slow
@pytest.mark.process
def test_with_java_every_metric_equals_pycocoevalcaps(pairs: Pairs, with_java: CaptionScores,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.eval import Bleu, Cider, Meteor, PTBTokenizer, Rouge

    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    # its tokenizer takes other line breaks than \n for the end of a caption
    plain = {item: (" ".join(answer.split()), references) for item, (answer, references) in pairs.items()}
    references = PTBTokenizer().tokenize({item: [{"caption": text} for text in texts]
                                          for item, (_, texts) in plain.items()})
    answers = PTBTokenizer().tokenize({item: [{"caption": answer}] for item, (answer, _) in plain.items()})
    meteor = Meteor()
    expected = [*Bleu(4).compute_score(references, answers, verbose=0)[0],
                meteor.compute_score(references, answers)[0], Rouge().compute_score(references, answers)[0],
                Cider().compute_score(references, answers)[0]]
    meteor.meteor_p.stdout.close()
    meteor.meteor_p.stderr.close()
    assert all(with_java.intervals[name].low < getattr(with_java, name) < with_java.intervals[name].high
               for name in METRICS)
    assert [getattr(with_java, name) for name in METRICS] == pytest.approx(expected, abs=1e-6)


@needs_java
@pytest.mark.slow
@pytest.mark.process
def test_meteor_of_the_summed_statistics_is_that_of_the_corpus() -> None:
    scores = ["SCORE ||| a dog runs fast ||| the dog is running", "SCORE ||| two men sing ||| a man sang a song",
              "SCORE ||| she opens a door ||| she opens a door", "SCORE ||| a dog runs ||| dog a runs",
              "SCORE ||| a man rides ||| "]
    with captions._meteor_program() as ask:
        stats = ask(scores)
        for chosen in (stats, stats[:2], stats[1:3], [stats[2]] * 3, stats[3:]):
            *_, corpus = ask([" ||| ".join(["EVAL", *chosen])], len(chosen) + 1)
            _, summed = ask(["EVAL ||| " + " ".join(map(str, captions.meteor_sums(chosen).sum(axis=0)))], 2)
            assert corpus == summed


def test_without_java_meteor_is_left_out_and_the_tokenizer_is_named(pairs: Pairs) -> None:
    scores = caption_metrics(pairs, "python", resamples=20)
    assert scores.tokenizer == "python"
    assert scores.meteor is None
    assert "meteor" not in scores.intervals
    assert all(set(values) == {*METRICS} - {"meteor"} for values in scores.items.values())


def test_bleu_equals_torchmetrics_on_equal_words(pairs: Pairs) -> None:
    from torchmetrics.functional.text import bleu_score

    scores = caption_metrics(pairs, "python", resamples=2)
    answers = [ptb.tokenize(answer) for answer, _ in pairs.values()]
    references = [[ptb.tokenize(text) for text in texts] for _, texts in pairs.values()]
    for words in range(1, 5):
        assert getattr(scores, f"bleu_{words}") == pytest.approx(float(bleu_score(answers, references, n_gram=words)),
                                                                 abs=1e-6)


def test_an_exact_copy_has_the_highest_scores() -> None:
    texts = {"1": "A man rides a red bike.", "2": "Two dogs run on the grass.", "3": "She opens the old door."}
    scores = caption_metrics({item: (text, [text]) for item, text in texts.items()}, "python", resamples=2)
    assert (scores.bleu_1, scores.bleu_4, scores.rouge_l) == pytest.approx((1, 1, 1))
    assert scores.cider == pytest.approx(10)


def test_captions_without_any_common_word_score_nothing() -> None:
    scores = caption_metrics({"1": ("Cats sleep.", ["A man rides."]), "2": ("", ["Two dogs."])}, "python", resamples=2)
    assert (scores.bleu_1, scores.rouge_l, scores.cider) == pytest.approx((0, 0, 0), abs=1e-6)


def test_auto_takes_python_where_java_is_missing(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert caption_metrics(pairs, resamples=2).tokenizer == "python"


def test_java_that_is_missing_is_named(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AuroraError, match="default-jre-headless"):
        caption_metrics(pairs, "java")


@pytest.mark.process
def test_java_that_fails_is_quoted(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no such option' >&2; exit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(AuroraError, match="no such option"):
        caption_metrics(pairs, "java")


@pytest.mark.process
def test_meteor_that_ends_early_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(AuroraError, match="METEOR's program ended early"), captions._meteor_program() as ask:
        ask(["SCORE ||| a ||| a"])


@pytest.mark.parametrize(("given", "message"), [
    ({}, "no captions"),
    ({"a": ("x", [])}, "item 'a' needs a list of references"),
    ({"a": ("x", "text")}, "item 'a' needs a list of references"),
    ({"a": ("x", [" "])}, "item 'a' needs a list of references"),
])
def test_what_cannot_be_scored_is_named(given: Pairs, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        caption_metrics(given, "python")


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AuroraError, match=r"auroralong\[eval\]"):
        caption_metrics({"a": ("x", ["y"])}, "python")
