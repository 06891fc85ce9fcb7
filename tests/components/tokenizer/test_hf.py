from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aurora.errors import AuroraError
from aurora.interfaces import Timestamps
from aurora.registry import TOKENIZER


def saved(path: Path, **special: str) -> str:
    letters = {letter: i for i, letter in enumerate("<s>/ab")}
    fast = Tokenizer(models.BPE(vocab=letters, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(path)
    return str(path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="nowhere"):
        TOKENIZER.build({"name": "hf", "path": str(tmp_path / "nowhere")})


def test_an_empty_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="holds no tokenizer"):
        TOKENIZER.build({"name": "hf", "path": str(tmp_path)})


def test_a_special_token_in_a_text_is_read_letter_by_letter(tmp_path: Path) -> None:
    tokenizer = TOKENIZER.build({"name": "hf", "path": saved(tmp_path, eos_token="</s>", bos_token="<s>")})
    assert tokenizer.encode("a<s>b") == [4, 0, 1, 2, 5]


def test_the_vocabulary_counts_the_special_tokens(tmp_path: Path) -> None:
    assert TOKENIZER.build({"name": "hf", "path": saved(tmp_path, eos_token="</s>")}).vocab_size == 7


def test_padding_ends_a_text_when_nothing_else_does(tmp_path: Path) -> None:
    assert TOKENIZER.build({"name": "hf", "path": saved(tmp_path, pad_token="<pad>")}).end_of_text == 6


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="neither an eos_token nor a pad_token"):
        TOKENIZER.build({"name": "hf", "path": saved(tmp_path)})


def with_a_mark_before_words(path: Path, words: list[str]) -> str:
    """As of SentencePiece: some words are one token with the mark before them, others are two."""
    letters = {letter: i for i, letter in enumerate("<s>▁0123456789:")}
    vocabulary = letters | {word: len(letters) + i for i, word in enumerate(words)}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[(word[0], word[1]) for word in words]))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>").save_pretrained(path)
    return str(path)


def test_every_second_has_as_many_tokens_where_a_mark_stands_before_each_character(tmp_path: Path) -> None:
    path = with_a_mark_before_words(tmp_path, ["▁:"])
    stamps = Timestamps.of(TOKENIZER.build({"name": "hf", "path": path}))
    assert {len(stamps.ids(second)) for second in range(0, 40_000, 7)} == {stamps.tokens} == {12}


@pytest.mark.parametrize("words", [["▁7"], None], ids=["one digit shorter than the others", "no digits"])
def test_a_tokenizer_that_cannot_give_timestamps_is_refused(tmp_path: Path, words: list[str] | None) -> None:
    path = saved(tmp_path, eos_token="</s>") if words is None else with_a_mark_before_words(tmp_path, words)
    with pytest.raises(AuroraError, match="digits are ten different texts of as many tokens; those of HF are"):
        Timestamps.of(TOKENIZER.build({"name": "hf", "path": path}))
