"""Results in the files of lmms-eval (0.7, `--log_samples`), and samples of lmms-eval as predictions of ours."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aurora.errors import AuroraError
from aurora.evaluation.predictions import (
    PREDICTIONS_FILE,
    Prediction,
    read_items,
    read_predictions,
    write_items,
    write_predictions,
)
from aurora.evaluation.record import versions
from aurora.files import read_json, replace_file
from aurora.interfaces import Item

MODEL = "auroralong"
RESULT_FILE = "result.json"
_FAILURE = "aurora_failure"


@dataclass(frozen=True)
class Sample:
    """One answer in a file of lmms-eval."""

    number: int  # the document's place in the task
    context: str
    answer: str
    target: str
    failure: str | None = None  # why it could not be asked, where Aurora wrote the file


def export(output: Path, folder: Path, *, task: str) -> tuple[Path, Path]:
    """The files of results and samples that lmms-eval would have written of what `aurora eval` left in `output`; those
    of other results that are there stay.

    AuroraError where `output` holds no result.
    """
    path = output / RESULT_FILE
    if not path.is_file():
        raise AuroraError(f"{output} holds no {RESULT_FILE}; give the output folder of `aurora eval`, once it is done")
    result, (_, items) = read_json(path), read_items(output)
    answers = {one.id: one for one in read_predictions(output / PREDICTIONS_FILE)[1]}
    if waiting := [item.id for item in items if item.id not in answers]:
        raise AuroraError(f"{output / PREDICTIONS_FILE} holds no prediction of {waiting[0]!r}; run `aurora eval` to "
                          "its end first")
    lines = [_line(number, item, answers[item.id]) for number, item in enumerate(items) if not item.control]
    (folder / MODEL).mkdir(parents=True, exist_ok=True)
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    about = json.dumps(_results(result, task, lines), indent=2, ensure_ascii=False) + "\n"
    return _write(folder / MODEL, int(path.stat().st_mtime), {f"samples_{task}.jsonl": written, "results.json": about})


def _write(folder: Path, second: int, texts: Mapping[str, str]) -> tuple[Path, Path]:
    """Writes the texts under their names and the second of the result, so that the same result is exported to the same
    files; a later second where others have this one."""
    while True:
        date = datetime.fromtimestamp(second, timezone.utc).strftime("%Y%m%d_%H%M%S")
        files = {folder / f"{date}_{name}": text.encode() for name, text in texts.items()}
        if all(not file.exists() or file.read_bytes() == content for file, content in files.items()):
            break
        second += 1
    for file, content in files.items():
        replace_file(file, content)
    samples, results = files
    return results, samples


def _line(number: int, item: Item, prediction: Prediction) -> dict[str, Any]:
    """As lmms-eval writes it where a filter changed nothing: without `resps`. It has no failures, so that one is an
    empty answer there."""
    failed = {} if prediction.failure is None else {_FAILURE: prediction.failure}
    return {"doc_id": number, "target": item.answer, "filtered_resps": prediction.answer, "token_counts": [None],
            "doc_hash": _hash(asdict(item)), "input": item.prompt, **failed}


def _results(result: Mapping[str, Any], task: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    score = result.get("score")
    scores = {} if score is None else {f"{result.get('metric') or 'score'},none": score}
    return {
        "results": {task: {"alias": task, **scores}}, "group_subtasks": {task: []},
        "configs": {task: {"task": task, "output_type": "generate_until"}}, "versions": {task: "Yaml"},
        "n-shot": {task: 0}, "n-samples": {task: {"original": len(lines), "effective": len(lines)}},
        "config": {"model": MODEL, "model_args": json.dumps(result.get("model"))}, "model_name": MODEL,
        "task_hashes": {task: _hash([line["doc_hash"] for line in lines])}, "aurora": dict(result)}


def import_samples(samples: Path, asked: Path, output: Path) -> dict[str, Any]:
    """Scores the answers in a file of lmms-eval as those to the items in `asked`, an output folder of `aurora eval` on
    the same benchmark. Writes `output` as `aurora eval` does, and gives its result.

    AuroraError where the samples are answers to other questions, or some are missing, and where `output` holds a run.
    """
    from aurora.evaluation.run import Protocol, merge

    about, items = read_items(asked)
    settings, _ = read_predictions(asked / PREDICTIONS_FILE)
    items = [item for item in items if not item.control]
    answers = matched(read_samples(samples), items, samples)
    used = {"model": f"lmms-eval: {samples.name}", "benchmark": settings["benchmark"],
            "questions": settings["questions"], "protocol": asdict(Protocol()),
            "imported": _hash(samples.read_text(encoding="utf-8"))}
    for path in sorted(output.glob("predictions*.jsonl")):
        if read_predictions(path)[0] != used:
            raise AuroraError(f"{path} is of another run; choose another --output")
    # the machine and the frames of the run that says what was asked are not those of these answers
    write_items(output, items, {**about, "missing_videos": [], "parallel": None, "versions": versions(),
                                "hardware": {"device": "not recorded"}})
    write_predictions(output / "predictions-0-of-1.jsonl", used, answers)
    return merge(output, 1)


def read_samples(path: Path) -> list[Sample]:
    """The answers of a `*_samples_TASK.jsonl`. AuroraError that names the line that is something else."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() also cuts at U+2028, which answers may hold
    except (OSError, UnicodeDecodeError) as error:
        raise AuroraError(f"{path} cannot be read: {error}") from error
    for number, text in enumerate(filter(str.strip, lines), 1):
        try:
            line = json.loads(text)
            found.append(Sample(int(line["doc_id"]), str(line["input"]), _text(line["filtered_resps"]),
                                str(line["target"]), line.get(_FAILURE)))
        except (KeyError, TypeError, ValueError) as error:
            raise AuroraError(f"{path}, line {number}: not a sample of lmms-eval ({error!r}); write it with "
                              "--log_samples") from error
    if not found:
        raise AuroraError(f"{path} holds no samples")
    return found


def matched(samples: Sequence[Sample], items: Sequence[Item], path: Path) -> list[Prediction]:
    """The predictions of all items: by their text where it is asked once, else by their place among equal texts."""
    waiting: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.number):
        waiting.setdefault(_same(sample.context), []).append(sample)
    found = []
    for item in items:
        same = waiting.get(_same(item.prompt), [])
        if not same:
            raise AuroraError(f"{path} has no answer to {item.prompt!r} ({item.id}): it is of another task, of another "
                              "prompt, or was run with --limit")
        sample = same.pop(0)
        found.append(Prediction(item.id, sample.answer, sample.failure))
    if left := sum(map(len, waiting.values())):
        raise AuroraError(f"{path} has {left} answers to questions that are not among the {len(items)} items")
    return found


def _text(value: Any) -> str:
    """Older files keep the list of responses around a single one."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise TypeError(f"filtered_resps is {value!r}, not one text")
    return value


def _same(text: str) -> str:
    return " ".join(text.split())


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
