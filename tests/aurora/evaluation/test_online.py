"""Questions about moments of a video: one pass over it, and the answers of a model that saw nothing later."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from aurora.config import ModelConfig
from aurora.evaluation.predictions import read_items
from aurora.evaluation.report import rows
from aurora.evaluation.results import read_result
from aurora.evaluation.run import Protocol, evaluate
from aurora.evaluation.summary import render
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling
from aurora.model import AuroraModel
from aurora.registry import READER
from aurora.weights.model_folder import save_model

PROTOCOL = Protocol(max_new_tokens=6)
MOMENTS = (0, 1.3, 2.5, 4, 4, 9)
"""Seconds of a video of 6 seconds."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    for name in ("a", "b"):
        make_video(folder / "src_videos" / f"{name}.mp4", 48, seed=ord(name))
    records = [{"id": f"{name}{number}", "task": "OCR" if number % 2 else "EPM", "video": f"{name}.mp4", "realtime": at,
                "question": "Which?", "options": ["red", "blue", "green"], "gt": number % 3}
               for name in ("a", "b") for number, at in enumerate(reversed(MOMENTS))]
    (folder / "ovo_bench_new.json").write_text(json.dumps(records))
    return folder


class CountingReader:
    """PyAV's, with the frames that were decoded by second."""

    def __init__(self) -> None:
        self.reader, self.decoded = READER.build({"name": "pyav"}), Counter()

    def read(self, source: str, sampling: Sampling) -> Iterator[tuple[float, np.ndarray]]:
        for seconds, frame in self.reader.read(source, sampling):
            self.decoded[Path(source).stem, seconds] += 1
            yield seconds, frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingReader:
    reader = CountingReader()
    monkeypatch.setattr(READER, "build", lambda _: reader)
    return reader


def answers(folder: Path) -> dict[str, str]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()[1:]
    return {line["id"]: line["answer"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def generic(make_model: Callable[..., AuroraModel]) -> AuroraModel:
    return make_model(prompt={"name": "generic"})


@pytest.fixture
def online(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    return make_config(prompt={"name": "generic"})


def run(model: AuroraModel, config: ModelConfig, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    return evaluate(model, config, data, output=output, protocol=PROTOCOL, benchmark={"name": "ovo_bench", **options})


def test_one_pass_decodes_each_moment_of_a_video_once(generic, online, stream, tmp_path, counting) -> None:
    result = run(generic, online, stream, tmp_path)
    assert result["one_pass"] and result["failed"] == 0
    assert set(counting.decoded.values()) == {1}
    assert len(counting.decoded) == 2 * 12  # two frames a second, of both videos


@pytest.mark.parametrize("prompt", ["generic", "sandwich"])
def test_moments_behind_the_end_of_a_video_are_counted(prompt, make_model, make_config, stream, tmp_path) -> None:
    parts = {"prompt": {"name": prompt}}
    result = run(make_model(**parts), make_config(**parts), stream, tmp_path)
    late = [{"id": f"{name}0", "video": f"src_videos/{name}.mp4", "at": 9, "seconds": 3.0} for name in ("a", "b")]
    assert (result["behind_end"], result["failed"]) == (late, 0)
    assert dict(rows([read_result(tmp_path)])[0][0].counts)["asked behind the end of the video"] == 2
    console = Console(file=io.StringIO(), width=200)
    console.print(render(result))
    assert "a0 (src_videos/a.mp4): second 9, 3.0 behind" in console.file.getvalue()


@pytest.mark.parametrize("timestamps", [False, True])
def test_answers_are_those_of_a_model_that_saw_nothing_later(make_model, make_config, stream, tmp_path, timestamps
                                                             ) -> None:
    prompt = {"prompt": {"name": "generic", "timestamps": timestamps}}
    generic, online = make_model(**prompt), make_config(**prompt)
    run(generic, online, stream, tmp_path)
    made, watcher = answers(tmp_path), VideoModel(generic, online)
    for item in read_items(tmp_path)[1]:
        path = stream / item.video
        shown = [one for one in watcher.reader.read(str(path), online.sampling) if one[0] <= item.at]
        film = watcher.watch(iter(shown))
        assert film.frames == len(shown)
        assert made[item.id] == film.ask(item.prompt, options=Generation(max_new_tokens=6)).strip()


def test_what_is_answered_depends_on_the_moment(generic, online, stream, tmp_path) -> None:
    run(generic, online, stream, tmp_path)
    made = answers(tmp_path)
    assert len({made[f"a{number}"] for number in range(len(MOMENTS))}) > 1


def test_a_prompt_that_begins_with_the_question_reads_again_and_sees_nothing_later(model, config, stream, tmp_path,
                                                                                  counting) -> None:
    result = run(model, config, stream, tmp_path)
    assert not result["one_pass"] and max(counting.decoded.values()) > 1
    made, watcher = answers(tmp_path), VideoModel(model, config)
    for item in read_items(tmp_path)[1][:4]:
        film = watcher.watch(stream / item.video, prompt=config.prompt, stop=item.at + 1e-3)
        assert made[item.id] == film.ask(item.prompt, options=Generation(max_new_tokens=6)).strip()


def test_a_window_shows_the_last_seconds(generic, online, stream, tmp_path) -> None:
    result = run(generic, online, stream, tmp_path, window=1.0)
    assert not result["one_pass"]
    assert result["failed"] == 0
    made, watcher = answers(tmp_path), VideoModel(generic, online)
    for item in [one for one in read_items(tmp_path)[1] if one.id in ("a1", "a3")]:
        film = watcher.watch(stream / item.video, start=item.at - 1, stop=item.at + 1e-3)
        assert film.frames == 3  # two a second, both ends included
        assert made[item.id] == film.ask(item.prompt, options=Generation(max_new_tokens=6)).strip()


@pytest.mark.parametrize("window", [2.0, 8.0])
def test_a_window_of_a_moment_behind_the_end_shows_the_last_seconds(generic, online, stream, tmp_path, window) -> None:
    result = run(generic, online, stream, tmp_path, window=window)
    assert [(one["id"], one["seconds"]) for one in result["behind_end"]] == [("a0", 3.0), ("b0", 3.0)]
    assert result["failed"] == 0
    film = VideoModel(generic, online).watch(stream / "src_videos" / "a.mp4", start=max(0.0, 6 - window))
    (item,) = [one for one in read_items(tmp_path)[1] if one.id == "a0"]
    assert answers(tmp_path)["a0"] == film.ask(item.prompt, options=Generation(max_new_tokens=6)).strip()


SCRIPT = """
import sys
from aurora.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_run_that_is_killed_at_any_item_ends_with_the_same_files(generic, online, stream, tmp_path) -> None:
    save_model(generic, online, tmp_path / "model")

    def start(output: Path) -> subprocess.Popen[bytes]:
        command = ["eval", "--benchmark", "ovo_bench", "--data", str(stream), "--model", str(tmp_path / "model"),
                   "--output", str(output), "--max-new-tokens", "6", "--parallel", "1"]
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *command], stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    lines, kills = 0, 0
    file = tmp_path / "killed" / "predictions.jsonl"
    while not (tmp_path / "killed" / "result.json").exists():
        process = start(tmp_path / "killed")
        while process.poll() is None:
            now = file.read_bytes().count(b"\n") if file.exists() else 0
            if kills < 2 and now > lines + 2:
                process.send_signal(signal.SIGKILL)
                kills, lines = kills + 1, now
                with file.open("ab") as torn:  # what the kill may leave of a line
                    torn.write(b'{"id": "a')
            time.sleep(0.01)
        process.wait()
    assert kills == 2
    for name in ("predictions.jsonl", "result.json", "items.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
