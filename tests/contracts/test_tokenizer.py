"""What every tokenizer must do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aurora.interfaces import Timestamps, Tokenizer
from aurora.registry import TOKENIZER

TEXTS = [
    "The Eiffel tower is in the city of",
    "Größe, naïve café",
    "视频里有几个红色的圆？ 日本語のテキスト",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301",
    "def f(x):\n\treturn x  # 1\r\n",
    "<s> <|endoftext|> </s>",
    "\x00\x7f",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer directory as transformers writes it, with a special token."""
    path = tmp_path_factory.mktemp("hf")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", bos_token="<s>").save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=TOKENIZER.known())
def tokenizer(request: pytest.FixtureRequest, directory: Path) -> Tokenizer:
    options = {"hf": {"path": str(directory)}}.get(request.param, {})
    return TOKENIZER.build({"name": request.param, **options})


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_lie_inside_the_vocabulary(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert min(ids) >= 0 and max(ids) < tokenizer.vocab_size


def test_nothing_is_added_to_a_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_is_read_as_the_end_of_a_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode(text)


def test_the_end_of_a_text_lies_inside_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert 0 <= tokenizer.end_of_text < tokenizer.vocab_size


def test_the_end_of_a_text_shows_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_of_text]) == "a"


def test_half_a_character_does_not_spoil_the_rest(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\u0378")  # unassigned, so that no vocabulary has it as one token
    assert len(ids) > 1
    shown = tokenizer.decode([*tokenizer.encode("before"), *ids[:-1], *tokenizer.encode("after")])
    assert shown.startswith("before\ufffd") and shown.endswith("after")


def test_every_id_can_be_decoded(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer.decode(range(tokenizer.vocab_size)), str)


@pytest.mark.parametrize(("seconds", "text"), [
    (0.0, "0:00:00"), (0.999, "0:00:01"), (0.99, "0:00:00"), (67, "0:01:07"), (3599.5, "0:59:59"), (3600.0, "1:00:00"),
    (35_999.0, "9:59:59"), (36_000.0, "9:59:59"), (1e9, "9:59:59"),
])
def test_every_second_has_as_many_tokens(tokenizer: Tokenizer, seconds: float, text: str) -> None:
    stamps = Timestamps.of(tokenizer)
    assert tokenizer.decode(stamps.ids(seconds)) == text and len(stamps.ids(seconds)) == stamps.tokens == 7
