"""`aurora eval` in processes of its own, which are killed, and which share a benchmark."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora.cli import main

pytestmark = [pytest.mark.process, pytest.mark.slow]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["aurora.commands.eval", "aurora.evaluation.run", "aurora.inference.models"])
ROOT, CLIPS = Path(__file__).parents[3], 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """MLVU's layout: two tasks, a question about each of so many videos."""
    folder = tmp_path_factory.mktemp("mlvu")
    (folder / "json").mkdir()
    for number, task in ((1, "plotQA"), (2, "needle")):
        asked = [{"video": f"{clip}.mp4", "question": "Which?", "candidates": ["red", "blue", "green"],
                  "answer": ("red", "blue", "green")[clip % 3], "question_type": task} for clip in range(CLIPS // 2)]
        (folder / "json" / f"{number}_{task}.json").write_text(json.dumps(asked))
        for clip in range(CLIPS // 2):
            make_video(folder / "video" / f"{number}_{task}" / f"{clip}.mp4", 24, seed=10 * number + clip)
    return folder


Start = Callable[..., multiprocessing.context.ForkServerProcess]


@pytest.fixture(scope="module")
def start(model_folder: Path, data: Path) -> Iterator[Start]:
    """Starts `aurora eval`; what still runs in the end is killed."""
    started: list[multiprocessing.context.ForkServerProcess] = []

    def start(output: Path, *words: str) -> multiprocessing.context.ForkServerProcess:
        os.environ["PYTHONPATH"] = str(ROOT)
        arguments = ["eval", "--benchmark", "mlvu", "--data", str(data), "--model", str(model_folder), "--output",
                     str(output), "--parallel", "1", "--max-new-tokens", "150", *words]  # long enough to be killed in
        process = CONTEXT.Process(target=_run, args=(arguments,))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def _run(arguments: list[str]) -> None:
    raise SystemExit(main(arguments))


def ended(process: multiprocessing.context.ForkServerProcess) -> int | None:
    process.join(120)
    return process.exitcode


def answered(path: Path) -> int:
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("items.jsonl", "predictions.jsonl", "result.json")]


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    assert ended(start(output)) == 0
    assert answered(output / "predictions.jsonl") == CLIPS
    return output


def test_killed_at_several_items_and_started_again_it_ends_with_the_same_files(start, whole, tmp_path) -> None:
    output, before = tmp_path / "killed", 0
    for wanted in (1, 3, 6):
        process = start(output)
        deadline = time.monotonic() + 120
        while answered(output / "predictions.jsonl") < wanted and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        assert ended(process) == -9 and not (output / "result.json").exists()
        now = answered(output / "predictions.jsonl")
        assert max(wanted, before) <= now < CLIPS
        before = now
    assert ended(start(output)) == 0
    assert files(output) == files(whole)


def test_four_processes_one_of_them_killed_end_with_what_one_writes(start, whole, tmp_path) -> None:
    output = tmp_path / "four"
    part = output / "predictions-3-of-4.jsonl"
    others = [start(output, "--shard", f"{rank}/4") for rank in range(3)]
    last = start(output, "--shard", "3/4")
    deadline = time.monotonic() + 120
    while not answered(part) and last.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    last.kill()
    assert [ended(process) for process in others] == [0] * 3 and ended(last) == -9 and answered(part) < CLIPS // 4
    assert not (output / "result.json").exists()
    assert ended(start(output, "--shard", "3/4")) == 0
    assert {answered(path) for path in output.glob("predictions-*-of-4.jsonl")} == {CLIPS // 4}
    assert files(output) == files(whole)
