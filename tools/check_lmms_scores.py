"""Compares the `lmms_compat` scorers with the real lmms-eval, on generated and adversarial answers.

usage: tools/build_lmms_env.sh FOLDER
       python tools/check_lmms_scores.py FOLDER/bin/python [--answers N] [--seed N] [--table FILE]

The real functions run in their own environment, as a process of this file with --verdicts. `--table` stores what they
said, for the tests that run without them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Doc = Mapping[str, Any]

OPTIONS = ["red", "a blue ball", "Green", "A. Smith", "the dog"]
LETTERS = "ABCDE"

HARD = [
    "", " ", "\n", ".", "A", "B", "a", "b", "(A)", "(b)", "A.", "b.", "B)", "B:", "A, B", "A or B", "Both A and B",
    "A/B", "A man opens the door.", "Dog", "The man picks up a cup", "The answer is B", "The answer is (B).",
    "the answer is b", "Answer: B", "Best option: (B", "B) a blue ball", "B. a blue ball", "a blue ball", "Option B",
    "option (b) is right", "I think A is wrong, so B.", "Not A. B", "It is not B", "I cannot answer that.",
    "Sorry, I can't see the video.", "As an AI, I do not know.", "None of the above", "All of the above", "ABCD",
    "AB", "BB", "F", "Z", "1", "2.", "e", "E.", "正确答案是B", "答案是 B", "选B", "정답은 B", "답: A",
    "答えはB", "Ответ: Б", "А",
    "В", "الجواب ب", "İ B", "ﬁrst B", "**B**", "`B`", "\"B\"", "'B'", "\\boxed{B}", "$B$", "<answer>B</answer>",
    "B\nBecause it is blue.", "\n\nB", "B\tA", "The best answer is: B because A is not", "The correct option isB",
    "Best answer:B", "Best option:Best answer:B", "The answer The answer B", "e.g. A", "U.S. Air Force", "Vitamin C",
    "Plan B", "3D", "A1", "B-52", "A's", "It's a B", "Yes", "No", "yes", "no", "Yes.", "No.", "Y", "N", "Yes and No",
    "Not yet", "NO", "YES", "Nobody", "0", "1", "2", "12", "1 2", "between 1 and 2", "2 times", "two", "2.5", "1,2",
    "-2", "02", "٢", "2️⃣", "²", "(1)", "one (1)", "x" * 300, "word " * 12 + "B", "word " * 12, "A " * 20,
    "." * 40 + "B", "3.5.B", "a.b.c", "1,000 B", "; B ;", "B;", "@B@",
]
_PIECES = [
    "A", "B", "C", "D", "E", "F", "a", "b", "(A)", "(B)", "(c)", "A.", "b.", "C:", "D)", " ", " ", " ", "\n", ".",
    ",", "!", "?", ";", "'", "\"", "-", "_", "/", "the answer is", "Answer is", "The best option is",
    "correct choice is", "my answer is", "I choose", "选", "答案是", "정답은", "答えは", "red", "a blue ball",
    "Green", "man",
    "dog", "and", "or", "not", "Yes", "No", "yes", "1", "2", "10", "3.5", "because", "Best answer:", "The answer",
    "option",
]


def answers(rng: random.Random, number: int) -> Iterator[str]:
    """All hard ones, then random rows of pieces until there are so many."""
    yield from HARD
    for _ in range(number - len(HARD)):
        yield "".join(rng.choice(_PIECES) + rng.choice(("", " ")) for _ in range(rng.randint(1, 8)))


# ---- documents, and what the real functions make of them (in lmms-eval's environment) ------------------------------

_CHOICE = {"question": "Which?", "candidates": OPTIONS[:4], "options": OPTIONS[:4], "answer": "B"}
_VIDEO_MME = {**_CHOICE, "domain": "Knowledge", "sub_category": "Law", "task_type": "OCR Problems", "duration": "short",
              "question_id": "1", "videoID": "v"}
_LONGVIDEO = {"id": "x_1", "duration_group": 15, "question_category": "TOS", "correct_choice": 1,
              **{f"option{n}": text for n, text in enumerate([*OPTIONS[:4], "N/A"])}}
_TIMESCOPE = {"id": "1", "video": "v", "type": "QA", "length": 60, "answer": "B"}
_OVO = {"id": 1, "question": "Which?"}

TASKS: dict[str, list[Doc]] = {
    "mvbench": [{**_CHOICE, "candidates": OPTIONS, "answer": OPTIONS[n], "task_type": task}
                for n, task in ((0, "action_count"), (1, "state_change"), (4, "object_shuffle"))],
    "mlvu_dev": [{**_CHOICE, "answer": letter, "task_type": task}
                 for letter, task in (("A", "plotQA"), ("B", "needle"))],
    "mlvu_test": [{**_CHOICE, "answer": letter, "task_type": task}
                  for letter, task in (("A", "sportsQA"), ("D", "ego"))],
    "videomme": [{**_VIDEO_MME, "answer": letter} for letter in "AB"],
    "lvbench": [{**_CHOICE, "answer": letter} for letter in "AC"],
    "longvideobench": [{**_LONGVIDEO, "correct_choice": n, "id": f"x_{n}", "duration_group": group}
                       for n, group in ((0, 15), (1, 600))],
    "timescope": [{**_TIMESCOPE, "answer": letter} for letter in "AB"],
    "longtimescope": [{**_TIMESCOPE, "answer": letter} for letter in "AB"],
    "ovo_realtime": [{**_OVO, "task": task, "gt": gt} for task, gt in (("OCR", 0), ("STU", 1))],
    "ovo_backward": [{**_OVO, "task": task, "gt": gt} for task, gt in (("EPM", 1), ("ASI", 2))],
    "ovo_forward": [{**_OVO, "task": "REC", "test_info": [{"count": 2}]},
                    {**_OVO, "task": "SSR", "test_info": [{"type": 0}]},
                    {**_OVO, "task": "CRR", "test_info": [{"type": 1}]}],
}


def verdicts(task: str, pairs: Sequence[tuple[Doc, str]]) -> tuple[list[bool], float]:
    """What the real lmms-eval says of each answer, and its number for all of them."""
    os.environ.setdefault("HF_HOME", tempfile.mkdtemp())
    results = [_results(task, dict(doc), answer) for doc, answer in pairs]
    return [_verdict(task, result) for result in results], float(_aggregate(task)(results))


def _module(task: str) -> Any:
    import importlib

    name = {"mlvu_dev": "mlvu", "mlvu_test": "mlvu"}.get(task, "ovobench" if task.startswith("ovo_") else task)
    return importlib.import_module(f"lmms_eval.tasks.{name}.utils")


def _results(task: str, doc: dict[str, Any], answer: str) -> Any:
    module = _module(task)
    if task == "longvideobench":
        # it draws a letter where it finds none; so that both draw the same one, by the id
        module.random = SimpleNamespace(choice=lambda letters: random.Random(doc["id"]).choice(letters))
        return module.longvideobench_process_results(doc, [answer])["lvb_acc"]
    if task == "ovo_forward":
        doc["test_info"] = [dict(test) for test in doc["test_info"]]
        return module.ovo_forward_process_results(doc, [answer])["forward_acc"]
    name = {"mlvu_dev": "mlvu", "mlvu_test": "mlvu", "longtimescope": "timescope"}.get(task, task)
    name = "ovo_back_real" if task.startswith("ovo_") else name
    (result,) = getattr(module, f"{name}_process_results")(doc, [answer]).values()
    return {**result, "family": doc["task_type"]} if task == "mvbench" else result


def _verdict(task: str, result: Any) -> bool:
    if task == "mvbench":
        return bool(result["score"])
    if task == "lvbench":
        return bool(result)
    if task == "longvideobench":
        return bool(result["parsed_pred"] == result["answer"])
    if task.startswith("ovo_"):
        from lmms_eval.tasks.ovobench.score_utils import score

        of = score.calculate_score_forward if task == "ovo_forward" else score.calculate_score_backward_realtime
        ((one,),) = of([result])[1].values()
        return bool(one)
    if "timescope" in task:
        return bool(result["pred_answer"].lower() == result["answer"].lower())
    return bool(result["pred_answer"] == result["answer"])


def _aggregate(task: str) -> Callable[[list[Any]], float]:
    module = _module(task)
    if task == "mvbench":  # one task of its group by itself, and the mean of them here
        def mean(results: list[Any]) -> float:
            families = dict.fromkeys(one["family"] for one in results)
            scores = [module.mvbench_aggregate_results([one for one in results if one["family"] == family])
                      for family in families]
            return float(sum(scores) / len(scores))

        return mean
    if task == "lvbench":
        return lambda results: sum(results) / len(results)
    if task.startswith("ovo_"):
        args = SimpleNamespace(output_path=tempfile.mkdtemp())
        of = module.ovo_forward_acc if task == "ovo_forward" else module.ovo_back_real_acc
        return lambda results: of(results, args)
    names = {"mlvu_dev": "mlvu_aggregate_results_dev", "mlvu_test": "mlvu_aggregate_results_test",
             "longtimescope": "timescope_aggregate_results"}
    return getattr(module, names.get(task, f"{task}_aggregate_results"))  # type: ignore[no-any-return]


# ---- ours ---------------------------------------------------------------------------------------------------------


def ours(task: str, pairs: Sequence[tuple[Doc, str]]) -> tuple[list[bool], float]:
    """What `lmms_compat` says of the same."""
    from aurora.registry import BENCHMARK

    options: dict[str, dict[str, Any]] = {
        "mlvu_dev": {"name": "mlvu"}, "mlvu_test": {"name": "mlvu", "split": "test"}, "videomme": {"name": "video_mme"},
        "longtimescope": {"name": "timescope", "long": True}}
    own = {"name": "ovo_bench" if task.startswith("ovo_") else task}
    benchmark: Any = BENCHMARK.build(options.get(task, own))
    items = [_item(task, doc, number) for number, (doc, _) in enumerate(pairs)]
    said = [answer for _, answer in pairs]
    right = [benchmark.compat(item, answer) for item, answer in zip(items, said, strict=True)]
    return right, benchmark.compat_score(items, said, right)


def _item(task: str, doc: Doc, number: int) -> Any:
    from aurora.interfaces import Item

    if task.startswith("ovo_"):
        if task == "ovo_forward":
            test = doc["test_info"][0]
            answer = str(test["count"]) if "count" in test else ("No", "Yes")[test["type"]]
            return Item(str(number), "v", "?", answer, family=doc["task"])
        return Item(str(number), "v", "?", OPTIONS[doc["gt"]], tuple(OPTIONS[:4]), doc["gt"], doc["task"])
    if task == "longvideobench":
        extra = {key: doc[key] for key in ("duration_group", "question_category")}
        return Item(doc["id"], "v", "?", "", tuple(OPTIONS[:4]), doc["correct_choice"], extra=extra)
    if task == "mvbench":
        return Item(str(number), "v", "?", "", tuple(OPTIONS), OPTIONS.index(doc["answer"]), doc["task_type"])
    family = doc.get("task_type", "all")
    return Item(str(number), "v", "?", "", tuple(OPTIONS[:4]), LETTERS.index(doc["answer"]), family)


def compare(python: str, number: int, seed: int, table: Path | None) -> int:
    """Prints a line per task; the number of tasks that differ."""
    stored, differing = [], 0
    asked = {task: [(doc, answer) for answer in answers(random.Random(f"{seed} {task}"), number) for doc in docs]
             for task, docs in TASKS.items()}
    said = _ask_real(python, asked)
    for task, pairs in asked.items():
        docs, real, mine = TASKS[task], said[task], ours(task, pairs)
        wrong = [pair for pair, one, other in zip(pairs, real[0], mine[0], strict=True) if one != other]
        apart = abs(real[1] - mine[1])
        differing += bool(wrong) or apart > 1e-9
        print(f"{task:16} {len(pairs) // len(docs)} answers x {len(docs)} documents: {len(wrong)} differ; lmms-eval "
              f"{real[1]!r}, lmms_compat {mine[1]!r}", flush=True)
        for doc, answer in wrong[:5]:
            print(f"    {answer!r} to {doc}")
        stored.append({"task": task, "score": real[1],
                       "verdicts": [[pairs[n][1], [int(one) for one in real[0][n:n + len(docs)]]]
                                    for n in range(0, len(pairs), len(docs))]})
    if table is not None:
        table.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in stored), encoding="utf-8")
    return differing


def _ask_real(python: str, asked: Mapping[str, Sequence[tuple[Doc, str]]]) -> dict[str, tuple[list[bool], float]]:
    run = subprocess.run([python, __file__, "--verdicts"], input=json.dumps(asked), capture_output=True, text=True,
                         check=False)
    if run.returncode:
        sys.exit(run.stderr[-2000:])
    said: dict[str, tuple[list[bool], float]] = json.loads(run.stdout.splitlines()[-1])
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", help="the interpreter of the environment with lmms-eval")
    parser.add_argument("--answers", type=int, default=600, help="per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="store what lmms-eval says of all answers")
    parser.add_argument("--verdicts", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.verdicts:
        print(json.dumps({task: verdicts(task, pairs) for task, pairs in json.load(sys.stdin).items()}))
    elif given.python is None:
        parser.error("name the interpreter of the environment with lmms-eval")
    else:
        sys.exit(bool(compare(given.python, given.answers, given.seed, given.table)))


if __name__ == "__main__":
    main()
