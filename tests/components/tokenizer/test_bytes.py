from __future__ import annotations

import pytest

from aurora.errors import AuroraError
from aurora.registry import TOKENIZER

BYTES = TOKENIZER.build({"name": "bytes"})


def test_an_id_is_one_more_than_its_byte() -> None:
    assert BYTES.encode("aé") == [98, 0xC3 + 1, 0xA9 + 1]


def test_all_bytes_come_back() -> None:
    assert BYTES.decode_bytes(BYTES.encode_bytes(bytes(range(256)))) == bytes(range(256))


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(AuroraError, match="257 is outside"):
        BYTES.decode([257])
