from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from aurora.errors import AuroraError
from aurora.interfaces import Tokenizer
from aurora.registry import TOKENIZER


@TOKENIZER.register
class HF(Tokenizer):
    """Any tokenizer directory of `transformers`; nothing is fetched, and no code of the directory is run."""

    def __init__(self, *, path: str) -> None:
        if not Path(path).is_dir():
            raise AuroraError(f"tokenizer 'hf': {path!r} is not a directory; give one with a tokenizer.json, as "
                              "save_pretrained writes it")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise AuroraError(f"tokenizer 'hf': {path!r} holds no tokenizer that transformers reads: {error}"
                              ) from error
        ends = [one for one in (self._tokenizer.eos_token_id, self._tokenizer.pad_token_id) if one is not None]
        if not ends:
            raise AuroraError(f"tokenizer 'hf': {path!r} names neither an eos_token nor a pad_token to end a text with")
        self.vocab_size, self.end_of_text = len(self._tokenizer), int(ends[0])

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
