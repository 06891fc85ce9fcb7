"""Any JSON in LLaVA's form, with videos: each question against its reference answer."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aurora.evaluation.scoring import chosen_option
from aurora.interfaces import Item, Items
from aurora.markers import plain_question
from aurora.options import PositiveInt
from aurora.registry import BENCHMARK

from ._choice import LETTERS
from ._files import Row, Videos, annotations, collect, lettered, rows
from ._judged import MixedBenchmark

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


@BENCHMARK.register
class Llava(MixedBenchmark):
    """Records of {"id", "video", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, …]}.

    Every question is asked by itself. One whose options stand in it with letters, on lines of their own or as
    "(A) red (B) blue", and whose answer names one of them, is a choice; the others are open and scored by exact match,
    word F1 and BLEU.
    """

    def __init__(self, *, annotations: str = "*.json*", videos: str | None = None,
                 max_new_tokens: PositiveInt = 128) -> None:
        self.annotations = annotations
        self.videos = videos
        self.max_new_tokens = max_new_tokens

    def items(self, folder: Path) -> Items:
        videos = Videos(folder, self.videos, ".", "videos", "video")
        files = annotations(folder, self.annotations)
        asked = enumerate((row for file in files for row in rows(file)), 1)
        return collect(folder, (item for number, row in asked for item in self._items(row, number, videos)))

    def _items(self, row: Row, number: int, videos: Videos) -> Iterator[Item]:
        id = row.text("id") if "id" in row.fields else str(number)
        video = videos.find(row, row.text("video"))
        turns = row.rows("conversations" if "conversations" in row.fields else "messages")
        if len(turns) < 2:
            raise row.error("a question and its answer must stand in the conversation")
        for place in range(0, len(turns) - 1, 2):
            asked, answered = _said(turns[place], _ASKS), _said(turns[place + 1], _ANSWERS)
            question = plain_question(asked, 1).strip()
            options = lettered(question)
            right = _right(turns[place + 1], answered, options)
            yield Item(id if len(turns) < 4 else f"{id}/{place // 2 + 1}", video, question,
                       answered if right is None else options[right], options if right is not None else (), right,
                       str(row.fields.get("family", row.fields.get("data_source", "all"))),
                       max_new_tokens=self.max_new_tokens)


def _said(turn: Row, by: Sequence[str]) -> str:
    speaker = turn.fields.get("from", turn.fields.get("role"))
    if speaker not in by:
        raise turn.error(f"{' or '.join(by)} must speak here, not {speaker!r}")
    return turn.text("value" if "value" in turn.fields else "content")


def _right(turn: Row, answer: str, options: Sequence[str]) -> int | None:
    """The option that a reference answer is, by its letter or its text; None for an open answer.

    AuroraError for a letter that no option has, or that is followed by another text than its option's.
    """
    if not options:
        return None
    plain = answer.strip().strip("().").strip()
    if plain in options:
        return list(options).index(plain)
    named = re.fullmatch(r"\(?([A-Za-z])(?:[).:]+\s*(.*))?", answer.strip(), re.DOTALL)
    if named is None:
        return chosen_option(answer, options)
    index = LETTERS.index(named[1].upper())
    if index >= len(options):
        raise turn.error(f"the answer {answer!r} names no option; there are {len(options)}")
    text, option = _words(named[2] or ""), _words(options[index])
    if text and text[:len(option)] != option:
        raise turn.error(f"the answer {answer!r} names option {LETTERS[index]}, which is {options[index]!r}")
    return index


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
