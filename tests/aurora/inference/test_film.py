from __future__ import annotations

import copy
import os
import pickle
import re
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import aurora
from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.inference import reading, visuals
from aurora.inference.film import Film
from aurora.inference.film_file import FilmMismatch
from aurora.inference.generation import Generation
from aurora.inference.reading import Memory, blank, fork, read_frames, read_texts
from aurora.inference.video_model import VideoModel
from aurora.inference.visuals import Progress, UnreadableVisual, file_hash, frames_of
from aurora.interfaces import Sampling, Turn, VideoReader, Visual
from aurora.model import AuroraModel
from aurora.registry import DATA, READER
from aurora.types import IGNORE, Frames
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards

SHORT = Generation(max_new_tokens=12)
QUESTION = "What moves?"


class CountingReader(VideoReader):
    """The real reader, counting how often a video is opened, and frames."""

    def __init__(self) -> None:
        self.opened = self.frames = 0
        self._reader = READER.build({"name": "pyav"})

    def read(self, source, sampling):
        self.opened += 1
        for one in self._reader.read(source, sampling):
            self.frames += 1
            yield one

    def times(self, source, sampling):
        return self._reader.times(source, sampling)

    def duration(self, source):
        return self._reader.duration(source)


@pytest.fixture
def watcher(model: AuroraModel, config: ModelConfig) -> VideoModel:
    return VideoModel(model, config)


@pytest.fixture
def counted(watcher: VideoModel) -> VideoModel:
    watcher.reader = CountingReader()
    return watcher


def ask(film: Film, question: str = QUESTION, **how) -> str:
    return film.ask(question, options=SHORT, **how)


def timed(watcher: VideoModel, video: Path) -> list:
    return list(watcher.reader.read(str(video), watcher.config.sampling))


def same(one: Film, other: Film) -> bool:
    """Whether two films remember the same to the bit."""
    a, b = one.memory(), other.memory()
    return torch.equal(a.hidden, b.hidden) and all(torch.equal(a.state[name], b.state[name]) for name in a.state)


@pytest.mark.parametrize("prompt", ["sandwich", "generic"])
def test_a_film_is_the_row_that_training_would_pack(watcher: VideoModel, video: Path, prompt: str) -> None:
    film = watcher.watch(video, prompt=prompt)
    model = film.model.model
    frames = list(frames_of([video], Sampling(fps=2.0), watcher.reader))
    kept = model.visual_layout(0.5).tokens(*frames[0].shape[:2])
    tokens, positions = [], []
    for piece in model.prompt.layout([Turn(QUESTION)], visual=True):
        if isinstance(piece, Visual):
            positions = list(range(len(tokens), len(tokens) + kept * len(frames)))
            tokens += [0] * len(positions)
        else:
            tokens += model.tokenizer.encode(piece.text)
    pixels = torch.stack([model.vision.prepare(frame) for frame in frames])
    with torch.inference_mode():
        row = model.embed_row(torch.tensor(tokens), [Frames(pixels, torch.tensor(positions).view(len(frames), kept))])
        hidden, _ = model.backbone.prefill(row, torch.tensor([0, len(tokens)]))
    torch.testing.assert_close(film.read_all([QUESTION]).hidden, hidden, rtol=1e-4, atol=1e-4)


STAMPED = {"name": "generic", "timestamps": True}


@pytest.mark.parametrize("prompt", ["sandwich", "generic"])
@pytest.mark.parametrize("cut", [{}, {"start": 1.3, "stop": 4.0}], ids=["whole", "range"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_film_is_the_row_of_its_shard(
    watcher: VideoModel, video: Path, tmp_path: Path, prompt: str, cut: dict, timestamps: bool
) -> None:
    part = {"name": prompt, "timestamps": timestamps}
    film = watcher.watch(video, prompt=part, **cut)
    model = film.model.model
    record = {"video": "mp4", "conversations": [{"from": "human", "value": f"<video>\n{QUESTION}"},
                                                {"from": "gpt", "value": "It."}]}
    if cut:
        record["range"] = [*cut.values()]
    write_shards([ShardSample("one", record, {"mp4": video.read_bytes()})], tmp_path / "d")
    data = DATA.build({"name": "webdataset", "root": str(tmp_path), "mixture": {"d": 1}, "row_tokens": 2000,
                       "row_frames": 99, "global_batch": 1, "fps": 2.0}, tokenizer=model.tokenizer,
                      prompt=model.prompt, layout=model.visual_layout(0.5), reader=watcher.reader)
    row, = chain.from_iterable(data.train_dataloader())
    asked = int((row.targets != IGNORE).nonzero()[0]) + 1
    with torch.inference_mode():
        x = model.embed_row(row.tokens, row.frames)[:asked]
        hidden, _ = model.backbone.prefill(x, torch.tensor([0, asked]))
    torch.testing.assert_close(film.read_all([QUESTION]).hidden, hidden, rtol=1e-4, atol=1e-4)
    stamps = re.findall(r"\d:\d\d:\d\d", model.tokenizer.decode(row.tokens[row.tokens > 0].tolist()))
    seconds = [int(cut.get("start", 0) + number / 2) for number in range(film.frames)]
    assert stamps == ([f"0:00:0{second}" for second in seconds] if timestamps else [])


def test_a_film_with_timestamps_is_the_same_to_the_bit_however_it_is_watched_and_kept(
    watcher: VideoModel, video: Path, tmp_path: Path
) -> None:
    frames, whole = timed(watcher, video), watcher.watch(video, prompt=STAMPED, checkpoint_seconds=1.0)
    in_parts = watcher.blank(prompt=STAMPED)
    for first, last in ((0, 1), (1, 3), (3, 9), (9, 10)):
        in_parts.extend([(seconds - frames[first][0], frame) for seconds, frame in frames[first:last]])
        ask(in_parts)
    assert same(in_parts, whole) and in_parts.id == whole.id
    assert not same(watcher.watch(video), whole) and watcher.watch(video).id != whole.id
    assert torch.equal(whole.memory(2.2).hidden, watcher.watch(frames[:5], prompt=STAMPED).memory().hidden)
    watcher.watch(frames[:5], prompt=STAMPED).save(tmp_path / "film.aurora")  # with frames that wait for a chunk
    opened = watcher.open(tmp_path / "film.aurora")
    other = opened.fork().extend([(seconds - opened.seconds, frame) for seconds, frame in frames[5:]])
    assert same(other, whole) and ask(other) == ask(whole)
    for use in ({"prompt": "generic"}, {"prompt": {"name": "generic", "timestamps": False}}):
        with pytest.raises(FilmMismatch, match="what differs: prompt"):
            watcher.open(tmp_path / "film.aurora", **use)


def test_the_same_frames_at_other_seconds_are_another_film_where_a_prompt_has_timestamps(watcher: VideoModel) -> None:
    frames = [np.full((32, 32, 3), shade, np.uint8) for shade in (10, 90, 170)]
    slow, fast = ([(number * every, frame) for number, frame in enumerate(frames)] for every in (61.0, 7.0))
    assert same(watcher.watch(slow), watcher.watch(fast))
    assert not same(watcher.watch(slow, prompt=STAMPED), watcher.watch(fast, prompt=STAMPED))


def test_a_frame_that_is_skipped_has_no_timestamp(watcher: VideoModel) -> None:
    still, moved = np.full((32, 32, 3), 90, np.uint8), np.full((32, 32, 3), 200, np.uint8)
    film = watcher.watch([still, still, moved], fps=1.0, prompt=STAMPED, skip="unchanged")
    assert film.now.skipped == 1
    assert same(film, watcher.watch([(0.0, still), (2.0, moved)], prompt=STAMPED, skip="unchanged"))


def test_a_model_whose_own_prompt_has_timestamps_keeps_them_in_the_prompt_that_shares(make_model, make_config) -> None:
    own = {"prompt": {"name": "sandwich", "timestamps": True}}
    film = VideoModel(make_model(**own), make_config(**own)).blank()
    assert film.model.reusable and film.model.model.prompt.timestamps and "prompt" not in film.model.chosen


def test_however_frames_arrive_the_film_is_the_same_to_the_bit(watcher: VideoModel, video: Path) -> None:
    frames, whole = timed(watcher, video), watcher.watch(video)
    in_parts = watcher.blank()
    for first, last in ((0, 1), (1, 3), (3, 9), (9, 10)):
        in_parts.extend([(seconds - frames[first][0], frame) for seconds, frame in frames[first:last]])
        ask(in_parts)  # in between, which changes nothing
    assert in_parts.frames == len(frames) == whole.frames and same(in_parts, whole)
    assert same(watcher.watch(iter(frames)), whole) and in_parts.id == whole.id


def test_a_film_up_to_a_moment_is_that_of_the_frames_shown_by_then(counted: VideoModel, video: Path) -> None:
    frames, moments = timed(counted, video), [0.0, 1.0, 2.2, 2.2, 4.0]
    whole, counted.reader.opened, counted.reader.frames = counted.watch(video), 0, 0
    for moment, film in zip(moments, counted.watching(video, moments=moments), strict=True):
        until = counted.watch([one for one in frames if one[0] <= moment])
        assert film.frames == until.frames and same(film, until)
    assert counted.reader.opened == 1 and counted.reader.frames <= len(frames)
    # afterwards: the file is read again up to there
    until = counted.watch([one for one in frames if one[0] <= 2.2])
    assert torch.equal(whole.memory(2.2).hidden, until.memory().hidden)
    assert whole.ask(QUESTION, at=2.2, options=SHORT).frames == 5


def test_checkpoints_answer_about_a_moment_without_the_video(watcher: VideoModel, video: Path, tmp_path: Path) -> None:
    film = watcher.watch(iter(timed(watcher, video)), checkpoint_seconds=1.0)
    film.save(tmp_path / "film.aurora")
    for one in (film, watcher.open(tmp_path / "film.aurora")):
        answer = ask(one, at=3.9)
        assert answer.seconds <= 3.9 and 0 < answer.frames < film.frames
        assert answer == ask(watcher.watch(timed(watcher, video)[:answer.frames]))


def test_a_moment_that_was_not_kept_is_refused(watcher: VideoModel, video: Path) -> None:
    film = watcher.watch(iter(timed(watcher, video)))
    with pytest.raises(AuroraError, match="second 1 was not kept: watch with checkpoint_seconds"):
        ask(film, at=1.0)


def test_a_moment_is_never_answered_from_another_video(watcher: VideoModel, make_video, tmp_path: Path) -> None:
    first, second = make_video(tmp_path / "a.mp4", 40), make_video(tmp_path / "b.mp4", 40, size=(48, 64))
    path = Path(shutil.copy(first, tmp_path / "clip.mp4"))
    film, kept = watcher.watch(path), watcher.watch(path, checkpoint_seconds=2.0)
    wanted = film.memory(3.2)
    os.utime(path, ns=(1, 1))  # touched: the same video
    assert torch.equal(film.memory(3.2).hidden, wanted.hidden)
    film.save(tmp_path / "film.aurora")
    longer = watcher.open(tmp_path / "film.aurora").extend(second)
    for change in (lambda: shutil.copy(second, path), path.unlink):
        change()
        for one in (film, longer):
            for at in (3.2, 7.2):
                if at < one.now.last:
                    with pytest.raises(AuroraError, match=f"second {at} was not kept"):
                        ask(one, at=at)
        assert kept.ask(QUESTION, at=3.2, options=SHORT).seconds == kept.history[1].seconds


def test_a_moment_of_a_long_video_is_read_without_hashing_it_again(watcher: VideoModel, video: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copy(video, tmp_path / "clip.mp4"))
    film, hashed = watcher.watch(path), []
    monkeypatch.setattr(visuals, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    film.memory(1.0)
    assert hashed == []
    os.utime(path, ns=(1, 1))
    film.memory(1.0)
    film.memory(2.0)
    assert len(hashed) == 1


def test_a_video_that_was_replaced_is_not_read_for_a_question(watcher: VideoModel, make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", 40)
    film = watcher.watch(path, prompt="sandwich")
    make_video(path, 30)
    with pytest.raises(UnreadableVisual, match=r"clip\.mp4 was changed or removed since it was watched"):
        ask(film)


@pytest.mark.parametrize("prompt", ["generic", "sandwich"])
def test_a_film_that_cannot_go_on_stays_as_it_was(watcher: VideoModel, video: Path, image: Path, tmp_path: Path,
                                                  prompt: str) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:700])
    film, none = watcher.watch(video, prompt=prompt, checkpoint_seconds=1.0), watcher.blank(prompt=prompt)
    before, answer = replace(film, _whole=None), ask(film)
    for more in ([broken], [image, broken]):
        with pytest.raises(UnreadableVisual):
            film.extend(*more)
        assert replace(film, _whole=None) == before and ask(film) == answer
        with pytest.raises(UnreadableVisual):
            list(film.fork().extending(broken))
    with pytest.raises(UnreadableVisual):
        list(none.extending(broken))
    assert none.media == () and not none.frames


def test_what_was_seen_before_a_source_broke_off_stays_where_it_is_watched_step_by_step(
    watcher: VideoModel, video: Path
) -> None:
    film = watcher.blank()
    with pytest.raises(UnreadableVisual, match=r"shown at second 0\.5, before"):
        for _ in film.extending([*timed(watcher, video), (0.5, np.zeros((9, 9, 3), np.uint8))]):
            pass
    assert film.frames >= 8 and len(film.media) == 1


def test_a_saved_film_is_the_same_to_the_bit_and_goes_on(watcher: VideoModel, video: Path, image: Path, tmp_path: Path
                                                         ) -> None:
    film = watcher.watch(video)
    ask(film, remember=True)
    film.save(tmp_path / "film.aurora")
    opened = watcher.open(tmp_path / "film.aurora")
    assert same(opened, film) and opened.id == film.id and opened.turns == film.turns
    assert (opened.frames, opened.seconds, opened.name) == (film.frames, film.seconds, video.name)
    assert ask(opened, "Where?") == ask(film, "Where?")
    film.turns = opened.turns = ()
    assert same(film.extend(image), opened.extend(image)) and film.id == opened.id


def test_a_fork_knows_nothing_of_what_the_other_is_asked_or_shown(
    watcher: VideoModel, video: Path, image: Path
) -> None:
    film = watcher.watch(video)
    before, other = ask(film, "Where?"), film.fork()
    ask(film, remember=True)
    film.turns = ()
    film.extend(image)
    assert ask(other, "Where?") == before and other.frames == film.frames - 1 and not same(film, other)


def test_asking_changes_nothing(watcher: VideoModel, video: Path) -> None:
    film = watcher.watch(video)
    first, memory = ask(film), film.memory()
    assert ask(film) == first and film.memory() is memory


def test_a_film_is_asked_while_it_is_watched_from_another_thread(watcher: VideoModel, video: Path) -> None:
    frames, said = timed(watcher, video), []
    film = watcher.blank()
    begun, go_on = threading.Event(), threading.Event()

    def slowly():
        for number, one in enumerate(frames):
            if number == 8:
                begun.set()
                assert go_on.wait(60)
            yield one

    thread = threading.Thread(target=lambda: film.extend(slowly()))
    thread.start()
    try:
        assert begun.wait(60)
        while film.frames < 8:
            pass
        said.append(ask(film))
    finally:
        go_on.set()
        thread.join()
    assert said == [ask(watcher.watch(frames[:8]))] and same(film, watcher.watch(iter(frames)))


def test_a_film_is_asked_before_its_first_frame_comes(watcher: VideoModel, video: Path) -> None:
    film, frames = watcher.blank(), timed(watcher, video)
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[tuple[float, np.ndarray]]:
        begun.set()
        assert go_on.wait(60)
        yield from frames

    thread = threading.Thread(target=lambda: film.extend(slowly()))
    thread.start()
    try:
        assert begun.wait(60)
        assert film.frames == 0 and ask(film) and film.memory().hidden is not None  # the text before the video is read
    finally:
        go_on.set()
        thread.join()
    assert same(film, watcher.watch(iter(frames)))


@pytest.mark.parametrize(("height", "width", "frames"), [(16, 16, 16), (96, 96, 16), (96, 120, 12), (384, 384, 8),
                                                         (1536, 384, 8)])
def test_small_frames_go_through_the_encoder_in_larger_chunks(
    height: int, width: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert reading.frames_per_chunk(height, width) == frames


@pytest.mark.parametrize("chunk", [(1, 1), (3, 3), (8, 16)])
def test_a_film_is_the_same_however_its_chunks_are_filled(
    watcher: VideoModel, make_video: Callable[..., Path], tmp_path: Path, chunk: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_FRAMES", chunk)
    frames = timed(watcher, make_video(tmp_path / "long.mp4", 140))
    assert len(frames) > 32
    sizes = []
    hook = watcher.model.vision.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    whole = watcher.watch(iter(frames))
    hook.remove()
    assert {*sizes} == {chunk[1]} and len(sizes) == len(frames) // chunk[1]
    in_parts = watcher.blank()
    for first, last in pairwise((0, 1, 15, 17, 33, len(frames))):
        in_parts.extend([(seconds - frames[first][0], frame) for seconds, frame in frames[first:last]])
        ask(in_parts)
    assert len(in_parts.now.pending) == len(whole.now.pending) == len(frames) % chunk[1]
    assert same(in_parts, whole) and ask(in_parts) == ask(whole)


def decoding() -> list[threading.Thread]:
    """Threads that run ahead."""
    return [thread for thread in threading.enumerate() if thread.name == "aurora-ahead"]


@pytest.fixture
def in_new_threads() -> Iterator[Callable[[], int]]:
    """How many threads of the CPU a new thread computes with."""
    def ask() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    yield ask
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "small", "shared"), [(1, True, 1), (1, False, 1), (3, True, 1), (3, False, 3)])
def test_the_stages_of_watching_share_the_threads_of_the_cpu(
    watcher: VideoModel, threads: int, small: bool, shared: int, in_new_threads: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other thread computes with fewer, then or afterwards."""
    monkeypatch.setattr("aurora.inference.ingest.SMALL_WIDTH", 10_000 if small else 0)
    seen: dict[str, set[tuple[bool, int]]] = {"decoder": set(), "encoder": set(), "backbone": set(), "others": set()}
    here, read = threading.get_ident(), watcher.prefill

    def note(stage: str) -> None:
        seen[stage].add((threading.get_ident() == here, torch.get_num_threads()))
        seen["others"].add((False, in_new_threads()))

    def frames() -> Iterator[np.ndarray]:
        for number in range(20):
            note("decoder")
            yield np.full((32, 48, 3), number, np.uint8)

    def prefill(*given: Any) -> Memory:
        note("backbone")
        return read(*given)

    monkeypatch.setattr(watcher, "prefill", prefill)
    hook = watcher.model.vision.register_forward_pre_hook(lambda *_: note("encoder"))
    torch.set_num_threads(threads)
    try:
        for film in watcher.watching(frames()):
            assert torch.get_num_threads() == threads and film.frames
    finally:
        hook.remove()
    assert seen == {"decoder": {(False, 1)}, "encoder": {(shared > 1, shared)}, "backbone": {(True, shared)},
                    "others": {(False, threads)}}
    assert torch.get_num_threads() == in_new_threads() == threads


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("stage", ["decoder", "encoder", "backbone"])
def test_an_error_ends_the_threads_that_run_ahead(
    watcher: VideoModel, stage: str, small: bool, in_new_threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the source is closed, which cannot be while it is read."""
    monkeypatch.setattr("aurora.inference.ingest.SMALL_WIDTH", 10_000 if small else 0)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def frames() -> Iterator[np.ndarray]:
        for number in range(200):
            if stage == "decoder" and number == 20:
                fail()
            yield np.full((32, 48, 3), number, np.uint8)

    torch.set_num_threads(3)
    if stage == "backbone":
        monkeypatch.setattr(watcher, "prefill", fail)
    hook = watcher.model.vision.register_forward_pre_hook(fail if stage == "encoder" else lambda *_: None)
    source = frames()
    try:
        watcher.watch(source)
    except KeyboardInterrupt:
        assert not decoding()
        source.close()
    else:
        pytest.fail("nothing was raised")
    finally:
        hook.remove()
    assert torch.get_num_threads() == in_new_threads() == 3


def test_films_that_are_watched_at_once_compute_with_all_threads(
    watcher: VideoModel, in_new_threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora.inference.ingest.SMALL_WIDTH", 0)
    torch.set_num_threads(3)
    seen: list[int] = []
    hook = watcher.model.vision.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    pictures = [np.full((32, 48, 3), number, np.uint8) for number in range(40)]
    try:
        with ThreadPoolExecutor(4) as pool:
            films = [*pool.map(lambda _: watcher.watch(iter(pictures)), range(8))]
    finally:
        hook.remove()
    assert {film.frames for film in films} == {40} and {*seen} == {3}
    assert torch.get_num_threads() == in_new_threads() == 3


def test_questions_together_are_answered_as_alone(watcher: VideoModel, video: Path) -> None:
    questions = [QUESTION, "Which colour is the square that moves?", "Where?"]
    for prompt in ("sandwich", "generic"):
        film = watcher.watch(video, prompt=prompt)
        alone = [ask(film, question) for question in questions]
        assert film.ask_all(questions, SHORT) == alone
        assert ["".join(pieces) for pieces in film.ask_each(questions, SHORT)] == alone
        assert "".join(film.ask(QUESTION, stream=True, options=SHORT)) == alone[0]


def test_no_questions_have_no_answers(watcher: VideoModel, video: Path) -> None:
    film = watcher.watch(video)
    assert film.ask_all([]) == watcher.answer_all([]) == list(film.ask_each([])) == []


def test_a_film_of_another_model_is_not_answered_together_with_its_own(watcher: VideoModel, make_model, video: Path
                                                                       ) -> None:
    film = watcher.watch(video)
    other = make_model()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(FilmMismatch, match=r"clip\.mp4 is of another model"):
        VideoModel(other, watcher.config).answer_all([(film, QUESTION)])
    assert VideoModel(watcher.model, watcher.config).answer_all([(film, QUESTION)], SHORT) == [ask(film)]


def test_films_together_are_answered_as_alone(watcher: VideoModel, make_video, tmp_path: Path) -> None:
    films = [watcher.watch(make_video(tmp_path / f"{seed}.mp4", 8 + seed, seed=seed)) for seed in range(3)]
    asked = [(film, question) for film in films for question in (QUESTION, "Where to?")]
    assert watcher.answer_all(asked, SHORT) == [ask(film, question) for film, question in asked]
    assert watcher.answer_all([]) == []


def test_a_video_is_read_once_unless_the_prompt_begins_with_the_question(counted: VideoModel, video: Path) -> None:
    film = counted.watch(video)
    ask(film), ask(film, "Where?")
    assert counted.reader.opened == 1
    film = counted.watch(video, prompt="sandwich")
    ask(film), ask(film, "Where?")
    assert counted.reader.opened == 3
    film.ask_all(["What?", "Where?", "When?"], SHORT)
    assert counted.reader.opened == 4


def test_what_is_seen_changes_the_film(watcher: VideoModel, make_video, tmp_path: Path) -> None:
    one, other = (watcher.watch(make_video(tmp_path / f"{seed}.mp4", 8, seed=seed)) for seed in range(2))
    assert not torch.allclose(one.memory().hidden, other.memory().hidden, atol=1e-2) and one.id != other.id


def test_a_remembered_exchange_changes_what_follows(watcher: VideoModel, video: Path) -> None:
    film = watcher.watch(video)
    before = ask(film, "Where?")
    ask(film, remember=True)
    assert ask(film, "Where?") != before and [turn.question for turn in film.turns] == [QUESTION]


@pytest.mark.parametrize(("change", "named"), [
    ({"keep_ratio": 0.25}, r"keep_ratio \(0.5 in the film, 0.25 here\)"),
    ({"merge": "pool"}, r"merge \(tome in the film, pool here\)"),
    ({"sort": "raster"}, "sort"), ({"prompt": "image_first"}, "prompt"), ({"skip": "unchanged"}, "skip"),
])
def test_a_film_that_was_watched_otherwise_is_refused_by_name(
    watcher: VideoModel, video: Path, tmp_path: Path, change, named: str
) -> None:
    watcher.watch(video).save(tmp_path / "plain.aurora")
    for wrong in (lambda: watcher.open(tmp_path / "plain.aurora", **change),
                  lambda: watcher.using(**change).open(tmp_path / "plain.aurora")):
        with pytest.raises(FilmMismatch, match=f"what differs: {named}"):
            wrong()
    film = watcher.watch(video, **change)
    film.save(tmp_path / "changed.aurora")
    assert same(watcher.open(tmp_path / "changed.aurora"), film)


def test_a_film_of_other_weights_dtype_tokenizer_or_version_is_refused(
    watcher: VideoModel, make_model, make_config, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher.watch(video).save(tmp_path / "film.aurora")
    other = make_model()
    with torch.no_grad():
        next(other.connector.parameters())[0, 0] += 1
    for model, config, named in ((other, make_config(), "weights"),
                                 (make_model(), make_config(dtype="bfloat16"), "dtype"),
                                 (make_model(), make_config(quantize="int8"), "quantize")):
        with pytest.raises(FilmMismatch, match=f"what differs: {named}"):
            VideoModel(model, config).open(tmp_path / "film.aurora")
    with pytest.raises(FilmMismatch, match="what differs: adapter"):
        VideoModel(watcher.model, watcher.config, adapter="abc").open(tmp_path / "film.aurora")
    monkeypatch.setattr("aurora.inference.base_video_model.VERSION", "99.0")
    later = VideoModel(watcher.model, watcher.config)
    with pytest.raises(FilmMismatch, match="what differs: version"):
        later.open(tmp_path / "film.aurora")
    assert later.open(tmp_path / "film.aurora", any_version=True).frames


def test_a_file_that_was_damaged_anywhere_is_never_answered_from(watcher: VideoModel, video: Path, tmp_path: Path
                                                                 ) -> None:
    watcher.watch(video).save(tmp_path / "film.aurora")
    good = (tmp_path / "film.aurora").read_bytes()
    rng = np.random.default_rng(0)
    broken = [good[:size] for size in (0, 1, 100, len(good) // 2, len(good) - 1)]
    for place in rng.integers(8, len(good), 40):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(rng.integers(8))
        broken.append(bytes(flipped))
    whole = watcher.watch(video)
    for number, content in enumerate(broken):
        (tmp_path / "broken.aurora").write_bytes(content)
        try:
            opened = watcher.open(tmp_path / "broken.aurora")
        except AuroraError:
            continue
        assert same(opened, whole), number  # white space in the header may change without harm


def test_a_film_replaces_neither_its_video_nor_another_file(watcher: VideoModel, video: Path, tmp_path: Path) -> None:
    clip, notes = Path(shutil.copy(video, tmp_path / "clip.mp4")), tmp_path / "notes.txt"
    notes.write_text("kept")
    film = watcher.watch(clip)
    for path, message in ((clip, "is the video itself, which the film would replace"),
                          (notes, "is there already and is not a film; give the name of another file")):
        before = path.read_bytes()
        with pytest.raises(AuroraError, match=message):
            film.save(path)
        assert path.read_bytes() == before


def test_a_file_that_may_not_grow_so_large_is_named_with_the_systems_reason(watcher: VideoModel, video: Path,
                                                                            tmp_path: Path) -> None:
    film, limits = watcher.watch(video), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^\[Errno 27\] File too large: '.*/film\.aurora'$"):
            film.save(tmp_path / "film.aurora")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"^\[Errno 2\] No such file or directory: '/proc/film\.aurora'$"):
        film.save("/proc/film.aurora")


def test_a_film_is_as_large_for_a_long_video(watcher: VideoModel, make_video, tmp_path: Path) -> None:
    sizes = []
    for frames in (8 * 4, 8 * 40):
        film = watcher.watch(make_video(tmp_path / "clip.mp4", frames))
        film.save(tmp_path / "film.aurora")
        with safe_open(tmp_path / "film.aurora", framework="pt") as file:
            sizes.append(sum(file.get_tensor(name).nbytes for name in file.keys()  # noqa: SIM118
                             if "thumbnail" not in name))
        assert len(film.thumbnails) <= 24
    assert sizes[0] == sizes[1]


def test_a_video_is_watched_from_its_address(watcher: VideoModel, video: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=video.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            film = watcher.watch(f"http://127.0.0.1:{server.server_port}/{video.name}?token=1")
            with pytest.raises(UnreadableVisual, match=r"none\.mp4 cannot be downloaded"):
                watcher.watch(f"http://127.0.0.1:{server.server_port}/none.mp4")
        finally:
            server.shutdown()
    with pytest.raises(AuroraError, match="second 1 was not kept"):
        ask(film, at=1.0)
    local = watcher.watch(video)
    assert same(film, local) and film.seconds == local.seconds and film.media[0].path is None
    assert (film.name, film.media[0].sha256) == (video.name, local.media[0].sha256)


def test_a_name_and_seconds_are_known_of_every_part(watcher: VideoModel, video: Path, image: Path) -> None:
    film = watcher.watch(image, video)
    assert film.name == "picture.png + clip.mp4" and film.seconds == 5.0 and film.frames == 11
    assert [medium.start for medium in film.media] == [0.0, 0.0]
    film.extend(video, fps=1.0)
    assert (film.frames, film.seconds, film.media[-1].start) == (16, 10.0, 5.0)
    assert all(len(medium.sha256) == 64 for medium in film.media)
    assert film.name in film._repr_html_() and "data:image/jpeg" in film._repr_html_()


def test_a_film_that_is_read_again_for_every_question_knows_its_frames_and_seconds(
    watcher: VideoModel, video: Path, image: Path
) -> None:
    film = watcher.watch(image, video, prompt="sandwich")
    once = watcher.watch(image, video, prompt="generic")
    assert (film.frames, film.seconds) == (once.frames, once.seconds)
    answer = ask(film)
    assert (answer.frames, answer.seconds) == (once.frames, once.seconds)
    assert len(list(watcher.watching(video, prompt="sandwich"))) == 1


def test_a_state_is_kept_for_every_part_of_that_many_seconds(watcher: VideoModel) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    film = watcher.watch([frame] * 64, fps=1.0, checkpoint_seconds=10.0)  # not the ends of chunks of eight
    assert [seen.last for seen in film.history] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


def test_frames_that_show_nothing_new_are_skipped(watcher: VideoModel) -> None:
    still = np.full((32, 32, 3), 90, np.uint8)
    moved = still.copy()
    moved[8:16, 8:16] = 200
    noisy = still + np.random.default_rng(0).integers(0, 2, still.shape, dtype=np.uint8)
    film = watcher.watch([still, noisy, still, moved, moved, still], skip="unchanged")
    assert (film.frames, film.now.skipped) == (6, 3)
    assert same(film, watcher.watch([still, moved, still], skip="unchanged"))
    assert watcher.watch([still] * 6).now.skipped == 0


def test_an_answer_begins_without_white_space(model: AuroraModel, watcher: VideoModel, video: Path) -> None:
    film = watcher.watch(video)
    ids = iter([*model.tokenizer.encode(" \n a b"), model.tokenizer.end_of_text])
    logits = model.backbone.logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backbone, "logits", lambda hidden: torch.zeros_like(logits(hidden)).index_fill_(
            -1, torch.tensor([next(ids)]), 1.0))
        assert ask(film) == "a b"


def test_every_frame_is_reported_with_the_times_of_all(watcher: VideoModel, video: Path, image: Path) -> None:
    reports: list[Progress] = []
    watcher.watch(image, video, frames=3, on_progress=reports.append)
    times = watcher.reader.times(str(video), Sampling(frames=3))
    assert reports == [("picture.png", 1, []), *(("clip.mp4", number, times) for number in (1, 2, 3))]


def test_a_moment_is_read_again_from_what_was_watched_and_not_from_the_rest_of_its_file(
    watcher: VideoModel, make_video, tmp_path: Path
) -> None:
    first, second = (make_video(tmp_path / f"{seed}.mp4", 40, seed=seed) for seed in (1, 2))

    def begun() -> Film:
        *_, film = watcher.watching(first, moments=[2.0])
        return film

    left = watcher.blank()
    for _ in left.extending(first):
        break
    for film, other in ((begun(), begun()), (left, left.fork())):
        film.extend(second)
        *_, there = other.extending(second, moments=[4.4])
        assert film._seen(4.4).digest == there.now.digest and film._seen(4.4).frames == there.frames
        assert torch.equal(film.memory(4.4).hidden, there.memory().hidden)


def test_a_moment_needs_only_the_videos_that_were_shown_by_then(watcher: VideoModel, make_video, video: Path,
                                                                tmp_path: Path) -> None:
    film = watcher.watch(video)
    wanted = film.memory(2.2).hidden
    film.extend([np.zeros((32, 48, 3), np.uint8)] * 3)
    assert torch.equal(film.memory(2.2).hidden, wanted)
    behind = film._seen(4.9)  # the last frame of the video
    assert (behind.digest, behind.frames, behind.seconds) == (watcher.watch(video).now.digest, 10, 4.9)
    with pytest.raises(AuroraError, match="second 5 was not kept"):
        ask(film, at=5.0)


def test_moments_of_several_videos_are_given_once_each_in_seconds_of_the_film(watcher: VideoModel, make_video,
                                                                              video: Path, tmp_path: Path) -> None:
    second = make_video(tmp_path / "second.mp4", 40, seed=3)
    frames = [*timed(watcher, video), *((5.0 + seconds, frame) for seconds, frame in timed(watcher, second))]
    moments = [1.0, 4.9, 5.0, 7.2, 30.0]
    growing = watcher.watching(video, second, moments=moments)
    names = []
    for moment, film in zip(moments, growing, strict=True):
        until = watcher.watch([one for one in frames if one[0] <= moment])
        assert (film.seconds, film.frames, film.now.digest) == (moment, until.frames, until.now.digest)
        names.append(film.name)
    assert names == ["clip.mp4"] * 2 + ["clip.mp4 + second.mp4"] * 3
    film = watcher.watch(video)
    assert [(one.seconds, one.frames) for one in film.extending(second, moments=[7.2])] == [(7.2, 15)]
    with pytest.raises(AuroraError, match=r"moment 1\.0 is not a second of what is still to be watched.* second 7\.2"):
        list(film.extending(second, moments=[1.0, 8.0]))


def test_a_film_that_could_not_be_opened_is_not_written_over_another(watcher: VideoModel, video: Path, tmp_path: Path
                                                                     ) -> None:
    film = watcher.watch(video)
    film.save(tmp_path / "film.aurora")
    film.now = replace(film.now, seconds=float("inf"))
    with pytest.raises(AuroraError, match=r"film\.aurora would be a film that cannot be opened"):
        film.save(tmp_path / "film.aurora")
    assert watcher.open(tmp_path / "film.aurora").seconds == 5.0
    watcher.watch(video, stop=float("inf")).save(tmp_path / "film.aurora")
    assert watcher.open(tmp_path / "film.aurora").frames == 10


def test_frames_from_python_are_described_by_their_rate_alone(make_model, make_config) -> None:
    film = VideoModel(make_model(), make_config(sampling={"frames": 2})).watch(np.zeros((5, 32, 32, 3), np.uint8))
    assert film.frames == 5 and film.media[0].sampling == {"fps": 1.0, "start": 0.0}


def test_a_film_is_copied_as_a_fork_and_not_pickled(watcher: VideoModel, video: Path) -> None:
    film = watcher.watch(video)
    for copied in (copy.copy(film), copy.deepcopy(film)):
        assert same(copied, film) and copied.extend(video).frames == 20 and film.frames == 10
    with pytest.raises(AuroraError, match=r"write it to a file with `film\.save`"):
        pickle.dumps(film)
    for use in (copy.deepcopy, pickle.dumps):
        with pytest.raises(AuroraError, match=r"write it with `model\.save_pretrained`"):
            use(watcher)


def test_a_film_that_has_seen_nothing_is_answered_beside_others(watcher: VideoModel, video: Path) -> None:
    film, none = watcher.watch(video), watcher.watch()
    for asked in ([(film, QUESTION), (none, "Hello?")], [(none, "Hello?"), (none, QUESTION)]):
        assert watcher.answer_all(asked, SHORT) == [ask(one, question) for one, question in asked]


def test_a_hub_or_store_that_cannot_be_reached_is_named(watcher: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception):
        """Of a client that has errors of its own."""

    def refuse(*_, **__):
        raise NoCredentials("Unable to locate credentials")

    monkeypatch.setattr("fsspec.open", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(UnreadableVisual, match=r"s3://bucket/a\.mp4 cannot be downloaded: Unable to locate"):
        watcher.watch("s3://bucket/a.mp4")
    with pytest.raises(AuroraError, match="'me/x' cannot be uploaded to the Hugging Face hub: Unable to locate"):
        watcher.push_to_hub("me/x")


FRAMES = np.zeros((5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(("use", "message"), [
    (lambda watcher, video: watcher.watch(3), "watched must be a path or frames, not int"),
    (lambda watcher, video: watcher.watch([np.zeros((2, 2, 3))]), r"frame 0 must be .* not float64 \(2, 2, 3\)"),
    (lambda watcher, video: watcher.watch([np.zeros((2, 2), np.uint8)]), "frame 0 must be an array"),
    (lambda watcher, video: watcher.watch([(1.0, np.zeros((9, 9, 3), np.uint8)), (0.5, np.zeros((9, 9, 3), np.uint8))]),
     "frame 1 is shown at second 0.5, before"),
    (lambda watcher, video: watcher.watch([("1", FRAMES[0])]), "the second of frame 0 must be a number, not '1'"),
    (lambda watcher, video: watcher.watch([(float("inf"), FRAMES[0])]), "frame 0 is shown at second inf"),
    (lambda watcher, video: watcher.watch([(float("nan"), FRAMES[0])]), "frame 0 is shown at second nan"),
    (lambda watcher, video: watcher.watch([]), "holds no frame"),
    (lambda watcher, video: watcher.watch(FRAMES, frames=4), "frames=4 is for files"),
    (lambda watcher, video: watcher.watch(video, FRAMES, max_frames=4), "max_frames=4 is for files"),
    (lambda watcher, video: watcher.watch(FRAMES, start=1.0), r"start=1\.0 is for files"),
    (lambda watcher, video: watcher.watch(FRAMES, stop=1.0), r"stop=1\.0 is for files"),
    (lambda watcher, video: watcher.watch("rtsp://127.0.0.1:1/live", frames=4), "frames=4 is for files"),
    (lambda watcher, video: watcher.watch(video).ask_all("Hi?"), r"give a list of questions, .*\['Hi\?'\]"),
    (lambda watcher, video: list(watcher.watch(video).ask_each("Hi?")), "give a list of questions"),
    (lambda watcher, video: watcher.answer_all("Hi?"), r"give a list of \(film, question\), of which 'H' is none"),
    (lambda watcher, video: watcher.answer_all((watcher.watch(video), "Hi?")), r"give a list of \(film, question\)"),
    (lambda watcher, video: list(watcher.watching(video, moments=[float("nan")])), "moment nan is not a second"),
    (lambda watcher, video: list(watcher.watching(video, moments=["1"])), "a moment must be a number, not '1'"),
    (lambda watcher, video: watcher.watch(video, checkpoint_seconds=float("inf")), "must be above 0 and finite"),
    (lambda watcher, video: watcher.watch(video).ask(" "), "the question is empty"),
    (lambda watcher, video: watcher.watch(video).ask("What \udce9?"), "the question 'What .*' is not text"),
    (lambda watcher, video: watcher.watch(video).ask(["What?"]), "the question must be str, not list"),
    (lambda watcher, video: watcher.watch(video).ask("What?", options={}), "options must be Generation, not dict"),
    (lambda watcher, video: watcher.watch(video).ask("What?", at=-1.0), "at -1.0 is not a second of the film"),
    (lambda watcher, video: watcher.watch(video).ask("What?", at="3"), "at must be a number, not '3'"),
    (lambda watcher, video: watcher.watch(video).ask("What?", at=float("nan")), "at nan is not a second of the film"),
    (lambda watcher, video: watcher.watch(video, fps="1"), "sampling: fps must be a number, not '1'"),
    (lambda watcher, video: watcher.watch(video, checkpoint_seconds="60"), "checkpoint_seconds must be a number"),
    (lambda watcher, video: watcher.watch(video).save("x\0y"), "holds a NUL character"),
    (lambda watcher, video: watcher.answer_all([(watcher.watch(video, prompt="sandwich"), "What?")]),
     "cannot be asked from its state"),
    (lambda watcher, video: watcher.watch(video, fps=1.0, frames=2), "exactly one of fps"),
    (lambda watcher, video: watcher.watch(video, merge="tomme"), "Did you mean 'tome'"),
    (lambda watcher, video: watcher.watch(video, keep_ratio=2.0), "keep_ratio"),
    (lambda watcher, video: watcher.watch(video, vision="siglip"), "'vision' cannot be changed for one film"),
    (lambda watcher, video: watcher.watch(video, checkpoint_seconds=0), "must be above 0"),
    (lambda watcher, video: watcher.watch(iter([]), prompt="sandwich"), "frames that come one by one"),
    (lambda watcher, video: watcher.watch(video, prompt="sandwich").save("film.aurora"), "cannot be saved"),
    (lambda watcher, video: watcher.watch(video, prompt="sandwich").ask("What?", at=1.0), "about a moment"),
    (lambda watcher, video: list(watcher.watching(video, moments=[1.0], prompt="sandwich")), "stop at moments"),
    (lambda watcher, video: watcher.watch("http://127.0.0.1:1/a.mp4"), "cannot be downloaded: .*(C|c)onnect"),
    (lambda watcher, video: watcher.open("none.aurora"), "none.aurora does not exist"),
])
def test_what_a_film_does_not_take_is_named(watcher: VideoModel, video: Path, use, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        use(watcher, video)


def test_the_five_lines_of_the_readme(model_folder: Path, video: Path, tmp_path: Path) -> None:
    model = aurora.load(model_folder)
    film = model.watch(video, fps=1.0)
    answer = film.ask("What happens?")
    film.save(tmp_path / "film.aurora")
    assert aurora.load(model_folder).open(tmp_path / "film.aurora").ask("What happens?") == answer


def test_a_model_is_saved_and_loaded_under_the_names_of_transformers(
    watcher: VideoModel, video: Path, tmp_path: Path
) -> None:
    watcher.save_pretrained(tmp_path / "model")
    again = VideoModel.from_pretrained(tmp_path / "model")
    assert "Aurora" in (tmp_path / "model" / "README.md").read_text()
    assert ask(again.watch(video)) == ask(watcher.watch(video))


def test_several_images_are_read_in_their_order(watcher: VideoModel, video: Path, image: Path) -> None:
    one, other, again = (watcher.watch(*order) for order in ((image, video), (video, image), (image, video)))
    assert same(one, again) and not torch.allclose(one.memory().hidden, other.memory().hidden, atol=1e-3)


def test_without_anything_to_see_only_the_text_is_read(watcher: VideoModel) -> None:
    film = watcher.blank()
    ids = [token for piece in film.model.model.prompt.layout([Turn("Hello?")], visual=False)
           for token in watcher.model.tokenizer.encode(piece.text)]
    expected = read_texts(watcher.runner, blank(watcher.runner, 1), [ids]).hidden
    torch.testing.assert_close(film.read_all(["Hello?"]).hidden, expected)


def test_frames_of_several_shapes_are_read_in_order(make_model) -> None:
    model = make_model(vision={"name": "siglip", "image_size": 16, "patch_size": 8, "width": 32, "layers": 3,
                               "heads": 2, "mlp_width": 64, "resize": "keep_aspect"})
    rng = np.random.default_rng(0)
    frames = [(0.0, rng.integers(0, 256, shape, dtype=np.uint8)) for shape in ((16, 16, 3), (16, 40, 3), (16, 16, 3))]
    layout = model.visual_layout(0.5)
    runner = model.backbone.runner()
    together = read_frames(model, runner, blank(runner, 1), frames, layout)
    one_by_one = blank(runner, 1)
    for frame in frames:
        one_by_one = read_frames(model, runner, one_by_one, [frame], layout)
    torch.testing.assert_close(together.hidden, one_by_one.hidden, rtol=1e-4, atol=1e-4)


def test_an_empty_text_leaves_its_sequence_as_it_is(model: AuroraModel) -> None:
    ids = [model.tokenizer.encode(text) for text in ("one", "two", "three")]
    runner = model.backbone.runner()
    before = read_texts(runner, blank(runner, 3), ids)
    after = read_texts(runner, before, [ids[0], [], ids[2]])
    for kept, was in ((fork(after, [1]), fork(before, [1])), (fork(after, [0]), read_texts(
            runner, fork(before, [0]), [ids[0]]))):
        torch.testing.assert_close(kept.hidden, was.hidden)
        # a product of one row and of three may be summed in another order
        torch.testing.assert_close(dict(kept.state), dict(was.state), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "does not exist"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"this is no video at all" * 10, "text.mp4"),
        ("text.png", b"not an image at all" * 10, "text.png' begins with b'not an i': no known image or video"),
    ],
)
def test_what_cannot_be_seen_is_named(watcher: VideoModel, tmp_path: Path, name: str, content, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableVisual, match=re.escape(message)):
        watcher.watch(tmp_path / name)


def test_a_folder_is_no_video(watcher: VideoModel, tmp_path: Path) -> None:
    with pytest.raises(UnreadableVisual, match="is a folder"):
        watcher.watch(tmp_path)


def test_a_truncated_image_is_refused(watcher: VideoModel, image: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:1000])
    with pytest.raises(UnreadableVisual, match=r"cut\.png is not a readable image"):
        watcher.watch(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"fps": 1.0, "frames": 8}, "exactly one"),
        ({"fps": None, "frames": None}, "exactly one"),
        ({"fsp": 1.0}, "Did you mean 'fps'"),
        ({"fps": "fast"}, "fps is 'fast'; it must be a number"),
        ({"frames": 2.5}, "must be a whole number"),
        ({"frames": 0}, "frames 0"),
        ({"fps": -1.0}, "fps -1.0"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(config, sampling: dict, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        ModelConfig.parse({**config.tree, "sampling": sampling})
