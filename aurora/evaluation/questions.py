"""The format of Blocks world and of your own questions: a folder with `questions.jsonl` and the videos that its lines
name."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from aurora.errors import AuroraError
from aurora.evaluation.prompts import MAX_OPTIONS, lettered_choice, multiple_choice
from aurora.records import FAULT, Record, records

T = TypeVar("T")
QUESTIONS_FILE = "questions.jsonl"


@dataclass(frozen=True)
class Question:
    """One question about one video; without options it is an open one."""

    id: str
    video: str  # relative to the folder
    family: str
    question: str
    options: tuple[str, ...]
    answer: str  # the text of the right option, or of an open question's answer

    @property
    def prompt(self) -> str:
        """The text that the model is given."""
        return multiple_choice(self.question, self.options) if self.options else self.question

    @property
    def letter_prompt(self) -> str:
        """The same, where options are to be answered by their letter."""
        return lettered_choice(self.question, self.options) if self.options else self.question

    @property
    def right(self) -> int:
        """The index of the right option."""
        return self.options.index(self.answer)


def read_questions(folder: str | Path) -> list[Question]:
    """The questions of a folder. AuroraError that names the line when one is not in the format."""
    path = Path(folder) / QUESTIONS_FILE
    if not path.is_file():
        raise AuroraError(f"{folder} has no {QUESTIONS_FILE}; an evaluation is a folder with {QUESTIONS_FILE} and "
                          "the videos that its lines name")
    questions: dict[str, Question] = {}
    for where, record in records(path):
        try:
            question = _question(record)
        except AuroraError as error:
            raise AuroraError(f"{path}, {where}: {error}") from error
        if question.id in questions:
            raise AuroraError(f"{path}, {where}: the id {question.id!r} was used before")
        questions[question.id] = question
    if not questions:
        raise AuroraError(f"{path} holds no question")
    return list(questions.values())


def spread(questions: Sequence[T], number: int) -> list[T]:
    """So many of them, or all, at equal distances: files are often sorted by family."""
    number = min(number, len(questions))
    return [questions[index * len(questions) // number] for index in range(number)]


def wrong_videos(questions: Sequence[Question], seed: int) -> dict[str, str]:
    """For each multiple-choice question the video of another one, whose right answer has another text.

    Of the same question asked elsewhere if there is one, else of the same family, else of any. A question for which
    no other video can be had is left out.
    """
    # by group, from those most like a question to all
    groups: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    keys = {asked: ((asked.family, asked.question), (asked.family,), ()) for asked in questions if asked.options}
    for asked, within in keys.items():
        for key in within:
            groups[key].append(asked)
    found = {}
    for asked, within in keys.items():
        answer = _plain(asked.answer)
        also_right = {asked.video, *(other.video for other in groups[within[0]] if _plain(other.answer) == answer)}
        for key in within:
            videos = sorted({other.video for other in groups[key] if _plain(other.answer) != answer} - also_right)
            if videos:
                drawn = hashlib.sha256(f"{seed}\0{asked.id}".encode()).digest()
                found[asked.id] = videos[int.from_bytes(drawn[:8], "big") % len(videos)]
                break
    return found


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _question(line: Record) -> Question:
    if FAULT in line:
        raise AuroraError(line[FAULT])
    for key in ("id", "video", "question"):
        if not isinstance(line.get(key), str) or not line[key].strip():
            raise AuroraError(f"{key!r} must be a text that is not empty, not {line.get(key)!r}")
    video = Path(line["video"])
    if video.is_absolute() or ".." in video.parts:
        raise AuroraError(f"video {line['video']!r} must be a path inside the folder")
    options = line.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise AuroraError(f"'options' must be a list of texts, not {options!r}")
    answer = line.get("answer")
    if options:
        if not 2 <= len(options) <= MAX_OPTIONS or len(set(options)) < len(options):
            raise AuroraError(f"'options' must be 2 to {MAX_OPTIONS} different texts, not {options!r}")
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
            raise AuroraError(f"'answer' must be the index of an option, 0 to {len(options) - 1}, not {answer!r}")
        answer = options[answer]
    elif not isinstance(answer, str) or not answer.strip():
        raise AuroraError(f"'answer' of an open question must be a text, not {answer!r}")
    return Question(line["id"], line["video"], str(line.get("family", "all")), line["question"], tuple(options), answer)
