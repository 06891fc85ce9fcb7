"""The World tokenizer against the authors' own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import rwkv
from hypothesis import given, settings
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from aurora.errors import AuroraError
from aurora.registry import TOKENIZER

OURS = TOKENIZER.build({"name": "rwkv_world"})
VOCABULARY = Path(TOKENIZER.folder / "rwkv_vocab_v20230424.txt")
TEXTS = [
    "The Eiffel tower is in the city of",
    "User: What is shown?\n\nAssistant: A red circle moves left.\n\n",
    "Straße über Łódź, naïve café, ﬁ ligature",
    "视频里有几个红色的圆？ 日本語のテキスト 한국어",
    "Привет, мир! مرحبا بالعالم שלום नमस्ते",
    "👩‍👩‍👧‍👦🏳️‍🌈 ☃ 𝔸𝔹",
    "for (int i = 0; i < n; ++i) {\n        a[i] = \"\\n\";\t}\r\n",
    "0123456789 3.14159 1e-10 0xFFFF",
    " " * 200 + "\n" * 50 + "=" * 130,
]


@pytest.fixture(scope="module")
def theirs() -> TRIE_TOKENIZER:
    return TRIE_TOKENIZER(str(Path(rwkv.__file__).with_name("rwkv_vocab_v20230424.txt")))


def test_the_vocabulary_is_the_authors_file() -> None:
    digest = hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
    assert digest == "8324476023347dec2964625ccb2075c864d250a9c6d9a74f36daba628de8c008"


def test_a_known_sentence_has_its_known_ids() -> None:
    ids = OURS.encode("The Eiffel tower is in the city of")
    assert ids == [6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_texts_get_the_authors_ids(theirs: TRIE_TOKENIZER, text: str) -> None:
    assert OURS.encode(text) == theirs.encode(text)


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode(errors="ignore"))))
def test_any_bytes_get_the_authors_ids(theirs: TRIE_TOKENIZER, data: bytes) -> None:
    assert OURS.encode_bytes(data) == theirs.encodeBytes(data)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(1, 65529)))
def test_any_ids_give_the_authors_bytes(theirs: TRIE_TOKENIZER, ids: list[int]) -> None:
    assert OURS.decode_bytes(ids) == theirs.decodeBytes(ids)


def test_every_token_alone_is_encoded_as_the_authors_do(theirs: TRIE_TOKENIZER) -> None:
    tokens = list(theirs.idx2token.values())[::37]
    assert [OURS.encode_bytes(token) for token in tokens] == [theirs.encodeBytes(token) for token in tokens]


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_an_id_outside_the_vocabulary_is_refused(wrong: int) -> None:
    with pytest.raises(AuroraError, match="outside the vocabulary"):
        OURS.decode([wrong])
