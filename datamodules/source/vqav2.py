import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError, BadSample
from aurora.interfaces import Entry
from aurora.records import items
from aurora.registry import SOURCE

from ._records import Parsed, RecordSource, agreed, annotation_files, asked, joined


@SOURCE.register
class Vqav2Source(RecordSource):
    """VQA v2 in its makers' files.

    `questions` are files of {"questions": [{"question_id", "image_id", "question"}]}, `annotations` of
    {"annotations": [{"question_id", "multiple_choice_answer" or "answers": [{"answer"}]}]}.

    `images` is the folder of the pictures and `file` the name of an image's in it. Of several answers the most
    frequent one counts. `prompt` stands behind every question. Each question is a sample, or with `by_image` those that
    stand together in the file about one image are a conversation, so that the image is stored once.
    """

    def __init__(
        self, *, folder: Path, questions: str | Sequence[str], annotations: str | Sequence[str],
        images: str = "train2014", file: str = "COCO_train2014_{image_id:012d}.jpg",
        prompt: str = "Answer the question using a single word or phrase.", by_image: bool = False,
    ) -> None:
        super().__init__(folder=folder, annotations=annotations)
        self._questions = [path for _, path in annotation_files(folder, questions)]
        if len(self._questions) != len(self._files):
            raise AuroraError(f"source 'vqav2': {len(self._questions)} files of questions, but {len(self._files)} of "
                              "annotations; they belong together in their order")
        self._images, self._file, self._prompt, self._by_image = images, file, prompt, by_image

    def annotations(self) -> Sequence[Path]:
        return [*self._questions, *super().annotations()]

    def entries(self) -> Iterator[Entry]:
        numbers = itertools.count()
        for questions, (_, answers) in zip(self._questions, self._files, strict=True):
            answered = ((one.get("question_id"), _answer(one)) for one in items(answers, "annotations"))
            asked_for = ((one.get("question_id"), one) for one in items(questions, "questions"))
            for _, rows in itertools.groupby(joined(asked_for, answered), lambda row: (
                    row[1].get("image_id") if self._by_image else next(numbers))):
                group = list(rows)
                identity, question, _ = group[0]
                image = question.get("image_id")
                yield {"id": image if self._by_image else identity, "image_id": image,
                       "turns": [[one.get("question"), found] for _, one, found in group]}

    def parse(self, record: Mapping[str, Any], key: str) -> Parsed:
        turns = []
        for question, answers in record["turns"]:
            if not answers:
                raise BadSample("text", f"no answer to {str(question)[:80]!r}")
            turns += asked(question, answers[0])
            turns[-2]["value"] += "\n" + self._prompt if self._prompt else ""
        try:
            name = self._file.format(image_id=int(record["image_id"]))
        except (TypeError, ValueError) as error:
            raise BadSample("field", f"image_id {record['image_id']!r} is not a number") from error
        return Parsed(turns, (name,), self._images)


def _answer(annotation: Mapping[str, Any]) -> Any:
    chosen = annotation.get("multiple_choice_answer")
    if chosen is not None:
        return chosen
    answers = annotation.get("answers")
    given = [one.get("answer") for one in answers if isinstance(one, Mapping)] if isinstance(answers, list) else []
    return agreed(given) if given else None
