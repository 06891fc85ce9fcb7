"""The World tokenizer of RWKV: at each position the longest known byte string.

The vocabulary file is the authors' (Apache-2.0): each line an id, a Python literal, and its length in bytes.
"""

import ast
from functools import lru_cache
from pathlib import Path

from aurora.registry import TOKENIZER

from .bytes import Bytes

VOCABULARY = Path(__file__).with_name("rwkv_vocab_v20230424.txt")


@TOKENIZER.register
class RWKVWorld(Bytes):
    """RWKV's World vocabulary: ids 1 to 65,529 stand for byte strings, 0 ends a text; the table is rounded up."""

    vocab_size = 65536
    end_of_text = 0
    files = (VOCABULARY,)

    def __init__(self) -> None:
        self.tokens, self._ids, self._lengths = _read()

    def encode_bytes(self, data: bytes) -> list[int]:
        ids, lengths = self._ids, self._lengths
        found = []
        position = 0
        while position < len(data):
            # every single byte is a token, so one length always fits
            for length in lengths.get(data[position : position + 2], (1,)):
                token = data[position : position + length]
                if token in ids:
                    break
            found.append(ids[token])
            position += len(token)  # the end of the data may be shorter than the length that was tried
        return found


@lru_cache(maxsize=1)
def _read() -> tuple[list[bytes], dict[bytes, int], dict[bytes, tuple[int, ...]]]:
    """Tokens by id, ids by token, and the lengths of the tokens that start with two bytes, longest first."""
    tokens = [b""] * RWKVWorld.vocab_size
    lines = VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]
    # a literal holds no newline of its own, so all of them are one list to parse
    literals = ast.literal_eval("[" + ",".join(line[line.index(" ") : line.rindex(" ")] for line in lines) + "]")
    for line, literal in zip(lines, literals, strict=True):
        tokens[int(line[: line.index(" ")])] = literal.encode() if isinstance(literal, str) else literal
    ids = {token: i for i, token in enumerate(tokens) if token}
    lengths: dict[bytes, set[int]] = {}
    for token in ids:
        if len(token) > 1:
            lengths.setdefault(token[:2], {1}).add(len(token))
    return tokens, ids, {start: tuple(sorted(seen, reverse=True)) for start, seen in lengths.items()}
