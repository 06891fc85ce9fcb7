"""Blocks world, and your own questions in its format."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aurora.evaluation.questions import Question, read_questions, wrong_videos
from aurora.interfaces import Item, Items
from aurora.options import PositiveInt
from aurora.registry import BENCHMARK

from ._files import collect
from ._judged import MixedBenchmark


@BENCHMARK.register
class Blocks(MixedBenchmark):
    """A `questions.jsonl` with options or open answers a line each; choices are asked of a wrong video too.

    A line is {"id", "video", "family", "question", "options", "answer": index of the right option}, or has no options
    and a text as answer. `seed` chooses the wrong videos. With `letters` the choices ask for the letter of an option
    instead of the option.
    """

    def __init__(self, *, wrong_videos: bool = True, seed: int = 0, letters: bool = False,
                 choice_tokens: PositiveInt = 16, open_tokens: PositiveInt = 128) -> None:
        self.wrong_videos = wrong_videos
        self.seed = seed
        self.letters = letters
        self.choice_tokens = choice_tokens
        self.open_tokens = open_tokens

    def items(self, folder: Path) -> Items:
        return collect(folder, self._asked(read_questions(folder)))

    def _asked(self, questions: Sequence[Question]) -> Iterator[Item]:
        own = [Item(asked.id, asked.video, asked.letter_prompt if self.letters else asked.prompt, asked.answer,
                    asked.options, asked.right if asked.options else None, asked.family,
                    max_new_tokens=self.choice_tokens if asked.options else self.open_tokens) for asked in questions]
        yield from own
        others = wrong_videos(questions, self.seed) if self.wrong_videos else {}
        yield from (replace(item, id=f"{item.id} (wrong video)", video=others[item.id], control=True,
                            extra={"control_of": item.id}) for item in own if item.id in others)
