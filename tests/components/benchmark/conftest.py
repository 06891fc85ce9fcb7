"""Every benchmark in its makers' layout, with two or three records. Videos are only looked for, so they are none."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aurora.interfaces import Item
from aurora.registry import BENCHMARK

Rows = Sequence[Mapping[str, Any]]


def put(path: Path, content: bytes = b"a video") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def put_json(path: Path, value: Any) -> None:
    put(path, json.dumps(value).encode())


def put_lines(path: Path, rows: Rows) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def put_parquet(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def put_csv(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def activitynet_qa(folder: Path) -> None:
    put_json(folder / "test_q.json", [
        {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1QIUV7WYKXg_3"},
        {"video_name": "2", "question": "what color is the hat", "question_id": "v_2_1"}])
    put_json(folder / "test_a.json", [{"answer": "blue", "type": 4, "question_id": "v_2_1"},
                                      {"answer": "yes", "type": 3, "question_id": "v_1QIUV7WYKXg_3"}])
    put(folder / "all_test" / "v_1QIUV7WYKXg.mp4")
    put(folder / "all_test" / "v_2.webm")


def blocks(folder: Path) -> None:
    put_lines(folder / "questions.jsonl", [
        {"id": "1", "video": "a.mp4", "family": "hue", "question": "Which?", "options": ["red", "blue"], "answer": 1},
        {"id": "2", "video": "b.mp4", "family": "hue", "question": "Which?", "options": ["red", "blue"], "answer": 0},
        {"id": "3", "video": "a.mp4", "question": "What happens?", "answer": "A ball rolls away."}])
    put(folder / "a.mp4")
    put(folder / "b.mp4")


def llava(folder: Path) -> None:
    put_json(folder / "qa.json", [
        {"id": "x", "video": "clips/a.mp4", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?\nA. a cat\nB. a dog"}, {"from": "gpt", "value": "B."},
            {"from": "human", "value": "What does it do?"}, {"from": "gpt", "value": "It runs."}]},
        {"id": "y", "video": "clips/b.mp4", "conversations": [
            {"from": "human", "value": "<video>\nWho?"}, {"from": "gpt", "value": "a man"}]}])
    put(folder / "clips" / "a.mp4")
    put(folder / "clips" / "b.mp4")


def longvideobench(folder: Path) -> None:
    put_json(folder / "lvb_val.json", [
        {"video_path": "86CxyhFV9MI.mp4", "question": "In the video, which subtitles appear?", "id": "86CxyhFV9MI_0",
         "question_wo_referring_query": "Which subtitles appear?", "candidates": ["promisc", "run", "see", "sit", "go"],
         "correct_choice": 1, "position": [16], "topic_category": "NP-News-Programs", "question_category": "TOS",
         "level": "L2-Relation", "subtitle_path": "86_en.json", "duration_group": 600, "duration": 190.16},
        {"video_path": "b.mp4", "question": "Who?", "id": "b_1", "candidates": ["she", "he"], "correct_choice": 0,
         "question_category": "S2E", "duration_group": 15, "duration": 9.1}])
    put(folder / "videos" / "86CxyhFV9MI.mp4")
    put(folder / "videos" / "b.mp4")


def lvbench(folder: Path) -> None:
    put_lines(folder / "video_info.meta.jsonl", [{
        "key": "Cm73ma6Ibcs", "type": "cartoon", "video_info": {"duration_minutes": 70, "fps": 25.0}, "qa": [
            {"uid": "1", "question": "What year appears?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633", "answer": "D",
             "question_type": ["key information retrieval"], "time_reference": "00:15-00:19"},
            {"uid": "2", "question": "Who is it?\n(A) He\n(B) She\n(C) They\n(D) It", "answer": "A",
             "question_type": ["entity recognition", "reasoning"], "time_reference": "01:00-01:09"}]}])
    put(folder / "all_videos" / "Cm73ma6Ibcs.mp4")


def mlvu(folder: Path) -> None:
    put_json(folder / "json" / "1_plotQA.json", [
        {"video": "movie101_66.mp4", "duration": 480.0, "question": "What color is the main male character?",
         "candidates": ["Yellow", "Red", "Green", "Blue"], "answer": "Yellow", "question_type": "plotQA"}])
    put_json(folder / "json" / "2_needle.json", [
        {"video": "needle_32.mp4", "duration": 467.98, "question": "What does the hand pick up?",
         "candidates": ["1", "2", "3", "4"], "answer": "3", "question_type": "findNeedle"}])
    for number, task in enumerate(("ego", "count", "order", "anomaly_reco", "topic_reasoning"), 3):
        put_json(folder / "json" / f"{number}_{task}.json", [
            {"video": "a.mp4", "duration": 9.5, "question": "Which?", "candidates": ["Yes", "No"], "answer": "No",
             "question_type": task}])
        put(folder / "video" / f"{number}_{task}" / "a.mp4")
    put_json(folder / "json" / "9_summary.json", [{"video": "217.mp4", "question": "Summarise.", "answer": "It is"}])
    put(folder / "video" / "1_plotQA" / "movie101_66.mp4")
    put(folder / "video" / "2_needle" / "needle_32.mp4")


def moviechat(folder: Path) -> None:
    put_json(folder / "annotations" / "AWA-6.json", {
        "info": {"video_path": "AWA-6.mp4", "url": "", "class": "nature", "w": 1920, "h": 1080, "fps": 24.0,
                 "num_frame": 11520},
        "caption": "A film about animals.",
        "global": [{"question": "When does it happen?", "answer": "Ancient."},
                   {"question": "Does it happen in a forest?", "answer": "Yes."}],
        "breakpoint": [{"time": 2400, "question": "What does the animal do?", "answer": "Eat."},
                       {"time": 480, "question": "Who is it?", "answer": "A bear."}]})
    put(folder / "videos" / "AWA-6.mp4")


def msrvtt(folder: Path) -> None:
    put_json(folder / "test_videodatainfo.json", {
        "info": {"year": "2016"},
        "videos": [{"category": 9, "url": "", "video_id": "video7960", "start time": 137.72, "end time": 149.44,
                    "split": "test", "id": 7960}, {"video_id": "video2", "split": "validate"}],
        "sentences": [{"caption": "a woman is singing", "video_id": "video7960", "sen_id": 140220},
                      {"caption": "someone sings", "video_id": "video7960", "sen_id": 140221}]})
    put(folder / "TestVideo" / "video7960.mp4")


def mvbench(folder: Path) -> None:
    for task, where in (("action_count", "perception/videos"), ("action_sequence", "star/Charades_v1_480")):
        bounds = {"start": 0.0, "end": 4.5} if task == "action_sequence" else {}
        put_json(folder / "json" / f"{task}.json", [
            {"video": "video_1.mp4", "question": "How many?", "candidates": ["3", "2", "1"], "answer": "2", **bounds},
            {"video": "video_2.mp4", "question": "What?", "candidates": ["a", "b", "a"], "answer": "a", **bounds}])
        put(folder / "video" / where / "video_1.mp4")
        put(folder / "video" / where / "video_2.mp4")


def ovo_bench(folder: Path) -> None:
    put_json(folder / "ovo_bench_new.json", [
        {"id": 7, "task": "EPM", "video": "Ego4D/a.mp4", "realtime": 12.5, "question": "Where was the cup?",
         "answer": "table", "options": ["shelf", "table"], "gt": 1},
        {"id": 8, "task": "OCR", "video": "Ego4D/a.mp4", "realtime": 3, "question": "What is written?",
         "answer": "STOP", "options": ["STOP", "GO", "EXIT"], "gt": 0},
        {"id": 9, "task": "REC", "video": "b.mp4", "activity": "jump", "test_info": [
            {"realtime": 2, "count": 1}, {"realtime": 4, "count": 2}]},
        {"id": 10, "task": "SSR", "video": "b.mp4", "test_info": [
            {"realtime": 2, "step": "Cut the bun.", "type": 0}, {"realtime": 6, "step": "Cut the bun.", "type": 1}]},
        {"id": 11, "task": "CRR", "video": "b.mp4", "question": "Why did he stop?", "answer": "It rained.",
         "ask_time": 1, "clue_time": 5, "test_info": [{"realtime": 3, "type": 0}, {"realtime": 5, "type": 1}]},
        *({"id": task, "task": task, "video": "b.mp4", "realtime": 4, "question": "Which?", "answer": "red",
           "options": ["red", "blue"], "gt": 0} for task in ("ASI", "HLD", "ACR", "ATR", "STU", "FPD", "OJR"))])
    put(folder / "src_videos" / "Ego4D" / "a.mp4")
    put(folder / "src_videos" / "b.mp4")


def streaming_bench(folder: Path) -> None:
    put_json(folder / "questions_real.json", [
        {"time": "[0:00:00 - 0:00:10]", "video_categories": "cooking", "video_path": "./videos/sample_348_real.mp4",
         "questions": [{"task_type": "Clips Summarize", "question": "What was done just now?", "time_stamp": "00:00:31",
                        "answer": "C", "options": ["A. Cut.", "B. Cooked.", "C. Put.", "D. Ate."],
                        "required_ability": "episodic memory"}]},
        {"time": "[0:03:17 - 0:03:27]", "video_categories": "cooking", "video_path": "./videos/sample_348_real.mp4",
         "questions": [{"task_type": "Object Recognition", "question": "What is seen right now?",
                        "time_stamp": "00:03:26", "answer": "A", "options": ["A cup.", "B", "C", "D"]}]}])
    put(folder / "real" / "sample_348" / "video.mp4")


def timescope(folder: Path) -> None:
    put_parquet(folder / "data" / "test-00000-of-00001.parquet", [
        {"id": "0", "video": "60_0.mp4", "input": "What is it?\nA. a cat\nB. a dog", "answer": "B", "type": "QA",
         "length": 60},
        {"id": "1", "video": "600_0.mp4", "input": "Which word?\nA. on\nB. off\nC. in", "answer": "c", "type": "OCR",
         "length": 600}])
    put(folder / "videos" / "60_0.mp4")
    put(folder / "videos" / "600_0.mp4")


def vatex(folder: Path) -> None:
    put_json(folder / "vatex_public_test_english_v1.1.json", [
        {"videoID": "G9zN5TTuGO4_000179_000189", "enCap": ["A man speaks.", "Someone talks."]},
        {"videoID": "b_000001_000011", "enCap": ["A dog runs."]}])
    put(folder / "videos" / "G9zN5TTuGO4_000179_000189.mp4")
    put(folder / "videos" / "b_000001_000011.mkv")


def vdc(folder: Path) -> None:
    parts = ("short", "camera", "background", "main_object", "detailed")
    put_lines(folder / "VDC_1k.jsonl", [
        {"video_id": id, "video_name": f"{id}.mp4", **{f"{part}_caption": f"The {part} of {id}." for part in parts}}
        for id in ("ego_1", "pexels_2")])
    for part in parts:
        put_lines(folder / "VDCScore_qa" / f"{part}.jsonl", [
            {id: [{"question": f"What of the {part}?", "answer": "That."}]} for id in ("ego_1", "pexels_2")])
    put(folder / "videos" / "ego_1.mp4")
    put(folder / "videos" / "pexels_2.mp4")


def video_mme(folder: Path) -> None:
    put_parquet(folder / "videomme" / "test-00000-of-00001.parquet", [
        {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Humanity & History", "url": "",
         "videoID": "fFjv93ACGo8", "question_id": "001-1", "task_type": "Counting Problem", "question": "How many?",
         "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C"},
        {"video_id": "601", "duration": "long", "domain": "Knowledge", "sub_category": "Law", "url": "",
         "videoID": "long_1", "question_id": "601-1", "task_type": "Action Reasoning", "question": "Why?",
         "options": ["A. Rain.", "B. Sun.", "C. Wind.", "D. Snow."], "answer": "A"}])
    put(folder / "data" / "fFjv93ACGo8.mp4")
    put(folder / "data" / "long_1.MP4")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (activitynet_qa, blocks, llava, longvideobench, lvbench, mlvu, moviechat, msrvtt,
                                     mvbench, ovo_bench, streaming_bench, timescope, vatex, vdc, video_mme)}
OPTIONS = {"mvbench": {"subtasks": ["action_count", "action_sequence"]}}
"""Of benchmarks whose layout here is not the whole one."""


@functools.cache
def built(config: str) -> Any:
    """Once per session: looking for plug-ins takes longer than reading a layout."""
    return BENCHMARK.build(json.loads(config))


class Made:
    """A benchmark and its folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        LAYOUTS[name](folder)

    def build(self, **options: Any) -> Any:
        return built(json.dumps({"name": self.name, **OPTIONS.get(self.name, {}), **options}))

    def items(self, **options: Any) -> dict[str, Item]:
        """By their ids."""
        return {item.id: item for item in self.build(**options).items(self.folder).items}

    def missing(self, **options: Any) -> tuple[str, ...]:
        return self.build(**options).items(self.folder).missing

    def score(self, answers: Mapping[str, str | None], scorer: str = "strict", **options: Any) -> dict[str, Any]:
        """Of these answers; whatever else is asked could not be."""
        items = self.build(**options).items(self.folder).items
        return self.build(**options).score(items, {item.id: answers.get(item.id) for item in items}, scorer)


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's program takes its time with 2,000 resamples; it is tested in tests/aurora/evaluation."""
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """The benchmark that a test is parametrized with, or that its file is named after."""
    name = getattr(request, "param", None) or Path(request.path).stem.removeprefix("test_")
    return Made(name, tmp_path / "data")


class Write:
    """Writers of annotation files, for the layouts that a benchmark knows besides."""

    file, json, lines, parquet, csv = map(staticmethod, (put, put_json, put_lines, put_parquet, put_csv))


@pytest.fixture
def write() -> type[Write]:
    return Write


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `every` runs for every registered benchmark."""
    if "every" in metafunc.fixturenames:
        metafunc.parametrize("every", BENCHMARK.known())


@pytest.fixture
def of_every(every: str, tmp_path: Path) -> Made:
    return Made(every, tmp_path / "data")
