from collections.abc import Sequence

from aurora.errors import AuroraError
from aurora.interfaces import Tokenizer
from aurora.registry import TOKENIZER


@TOKENIZER.register
class Bytes(Tokenizer):
    """Bytes of UTF-8, for tiny models: id b + 1 is the byte b, 0 ends a text."""

    vocab_size = 257
    end_of_text = 0
    tokens: Sequence[bytes] = (b"", *(bytes([byte]) for byte in range(256)))
    """The bytes of every id; those that stand for nothing are empty."""

    def encode(self, text: str) -> list[int]:
        return self.encode_bytes(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes."""
        return [byte + 1 for byte in data]

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids; ids that stand for nothing give none."""
        outside = [i for i in ids if not 0 <= i < self.vocab_size]
        if outside:
            raise AuroraError(f"token id {outside[0]} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        return b"".join([self.tokens[i] for i in ids])
