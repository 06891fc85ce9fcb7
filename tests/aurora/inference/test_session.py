from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import aurora
from aurora.config import ModelConfig
from aurora.errors import AuroraError
from aurora.inference import reading
from aurora.inference.generation import Generation
from aurora.inference.reading import blank, fork, read_frames, read_texts
from aurora.inference.session import Session
from aurora.inference.visuals import UnreadableVisual, frames_of
from aurora.interfaces import Sampling, Turn, VideoReader, Visual
from aurora.model import AuroraModel
from aurora.registry import READER
from aurora.types import Frames

SHORT = Generation(max_new_tokens=12)


class CountingReader(VideoReader):
    """The real reader, counting how often a video is opened."""

    def __init__(self) -> None:
        self.opened = 0
        self._reader = READER.build({"name": "pyav"})

    def read(self, source, sampling):
        self.opened += 1
        return self._reader.read(source, sampling)

    def times(self, source, sampling):
        return self._reader.times(source, sampling)


@pytest.fixture(scope="module")
def generic(make_model: Callable[..., AuroraModel]) -> AuroraModel:
    return make_model(prompt={"name": "generic"})


def session(model: AuroraModel, *sources: Path, **options) -> Session:
    made = Session(model, keep_ratio=0.5, **{"sampling": Sampling(fps=2.0), **options})
    made.watch(*sources)
    return made


def answer(session: Session, question: str = "What moves?") -> str:
    return "".join(session.ask(question, SHORT))


def test_a_session_reads_the_row_that_training_would_pack(model: AuroraModel, video: Path) -> None:
    frames = list(frames_of([video], Sampling(fps=2.0), READER.build({"name": "pyav"})))
    pieces = model.prompt.layout([Turn("What moves?")], visual=True)
    kept = model.visual_layout(0.5).tokens(*frames[0].shape[:2])
    tokens, positions = [], []
    for piece in pieces:
        if isinstance(piece, Visual):
            positions = list(range(len(tokens), len(tokens) + kept * len(frames)))
            tokens += [0] * len(positions)
        else:
            tokens += model.tokenizer.encode(piece.text)
    pixels = torch.stack([model.vision.prepare(frame) for frame in frames])
    with torch.inference_mode():
        row = model.embed_row(torch.tensor(tokens), [Frames(pixels, torch.tensor(positions).view(len(frames), kept))])
        hidden, _ = model.backbone.prefill(row, torch.tensor([0, len(tokens)]))
    memory = session(model, video).read_all(["What moves?"])
    torch.testing.assert_close(memory.hidden, hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_change_nothing(model: AuroraModel, video: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = session(model, video).read_all(["What moves?", "And where to?"]).hidden
    monkeypatch.setattr(reading, "ROW_TOKENS", 10 * size)
    monkeypatch.setattr(reading, "FRAMES_PER_CHUNK", size)
    found = session(model, video).read_all(["What moves?", "And where to?"]).hidden
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_seen_changes_the_answer(model: AuroraModel, make_video, tmp_path: Path) -> None:
    clips = [make_video(tmp_path / f"{seed}.mp4", 8, seed=seed) for seed in range(2)]
    memories = [session(model, clip).read_all(["What moves?"]).hidden for clip in clips]
    assert not torch.allclose(*memories, atol=1e-2)


def test_questions_together_are_answered_as_alone(model: AuroraModel, video: Path) -> None:
    questions = ["What moves?", "Which colour is the square that moves?", "Where?"]
    alone = [answer(session(model, video), question) for question in questions]
    assert session(model, video).answer_all(questions, SHORT) == alone


def test_questions_that_begin_alike_are_answered_as_alone(generic: AuroraModel, video: Path) -> None:
    questions = ["What moves?", "Which colour is the square that moves?"]
    alone = [answer(session(generic, video), question) for question in questions]
    assert session(generic, video).answer_all(questions, SHORT) == alone


def test_many_questions_decode_the_video_once(model: AuroraModel, video: Path) -> None:
    reader = CountingReader()
    session(model, video, reader=reader).answer_all(["What?", "Where?", "When?"], SHORT)
    assert reader.opened == 1


def test_a_prompt_that_begins_alike_reads_the_video_once(generic: AuroraModel, video: Path) -> None:
    reader = CountingReader()
    asked = session(generic, video, reader=reader)
    answer(asked, "What moves?"), answer(asked, "Where?")
    assert reader.opened == 1


def test_a_prompt_that_begins_with_the_question_reads_the_video_again(model: AuroraModel, video: Path) -> None:
    reader = CountingReader()
    asked = session(model, video, reader=reader)
    answer(asked, "What moves?"), answer(asked, "What moves?"), answer(asked, "Where?")
    assert reader.opened == 2


def test_another_video_is_not_answered_from_the_last_one(generic: AuroraModel, make_video, tmp_path: Path) -> None:
    clips = [make_video(tmp_path / f"{seed}.mp4", 8, seed=seed) for seed in range(2)]
    asked = session(generic, clips[0])
    answer(asked)
    asked.watch(clips[1])
    assert answer(asked) == answer(session(generic, clips[1]))


def test_asking_leaves_the_state_alone(generic: AuroraModel, video: Path) -> None:
    asked = session(generic, video)
    assert answer(asked) == answer(asked)


def test_a_remembered_exchange_changes_what_follows(generic: AuroraModel, video: Path) -> None:
    asked = session(generic, video)
    before = answer(asked, "Where?")
    "".join(asked.ask("What moves?", SHORT, remember=True))
    assert answer(asked, "Where?") != before
    assert [turn.question for turn in asked.turns] == ["What moves?"]


def test_a_fork_knows_nothing_of_what_the_other_is_asked(generic: AuroraModel, video: Path) -> None:
    asked = session(generic, video)
    before = answer(asked, "Where?")
    other = asked.fork()
    "".join(asked.ask("What moves?", SHORT, remember=True))
    assert answer(other, "Where?") == before


def test_a_saved_session_answers_without_the_video(generic: AuroraModel, video: Path, tmp_path: Path) -> None:
    asked = session(generic, video)
    "".join(asked.ask("What moves?", SHORT, remember=True))
    asked.save(tmp_path / "seen.safetensors")
    reader = CountingReader()
    loaded = Session(generic, keep_ratio=0.5, reader=reader)
    loaded.load(tmp_path / "seen.safetensors")
    assert answer(loaded, "Where?") == answer(asked, "Where?")
    assert reader.opened == 0


def test_a_saved_session_needs_no_video_where_the_prompt_begins_with_the_question(
        model: AuroraModel, make_video, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", 8)
    asked = session(model, clip)
    same = answer(asked, "What moves?")
    asked.save(tmp_path / "seen.safetensors")
    clip.unlink()
    loaded = Session(model, keep_ratio=0.5)
    loaded.load(tmp_path / "seen.safetensors")
    assert answer(loaded, "Where?") and answer(loaded, "What moves?") == same
    assert loaded.answer_all(["Where?", "What moves?"], SHORT) == [answer(loaded, "Where?"), same]


def test_an_answer_begins_without_white_space(model: AuroraModel, video: Path) -> None:
    asked = session(model, video)
    ids = iter([*model.tokenizer.encode(" \n a b"), model.tokenizer.end_of_text])
    logits = model.backbone.logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.backbone, "logits", lambda hidden: torch.zeros_like(logits(hidden)).index_fill_(
            -1, torch.tensor([next(ids)]), 1.0))
        assert answer(asked) == "a b"


def test_every_frame_is_reported_with_the_times_of_all(model: AuroraModel, video: Path, image: Path) -> None:
    reports = []
    answer(session(model, image, video, sampling=Sampling(frames=3), on_frame=lambda *read: reports.append(read)))
    times = READER.build({"name": "pyav"}).times(str(video), Sampling(frames=3))
    assert reports == [(str(image), 1, []), *((str(video), number, times) for number in (1, 2, 3))]


@pytest.mark.parametrize(("use", "message"), [
    (lambda model, video: session(model, np.zeros((2, 2, 3))), "watched must be str or PathLike, not ndarray"),
    (lambda model, video: session(model, [video]), "watched must be str or PathLike, not list"),
    (lambda model, video: Session(model).ask("What?"), "nothing was watched yet"),
    (lambda model, video: Session(model).read_all(["What?"]), "nothing was watched yet"),
    (lambda model, video: session(model, video).ask(" "), "the question is empty"),
    (lambda model, video: session(model, video).ask("What \udce9?"), "the question 'What .*' is not text"),
    (lambda model, video: session(model, video).ask(["What?"]), "the question must be str, not list"),
    (lambda model, video: session(model, video).ask("What?", {"seed": 1}), "options must be Generation, not dict"),
    (lambda model, video: session(model, video).answer_all(["What?"], 3), "options must be Generation, not int"),
    (lambda model, video: Session(model, sampling={"fps": 1}), "sampling must be Sampling, not dict"),
    (lambda model, video: Session(model, reader="pyav"), "reader must be VideoReader, not str"),
    (lambda model, video: Session(str(video)), "model must be AuroraModel, not str"),
])
def test_what_a_session_does_not_take_is_named_at_once(model: AuroraModel, video: Path, use, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        use(model, video)


def test_the_names_of_the_package_answer_a_question(model_folder: Path, model: AuroraModel, video: Path) -> None:
    used, config = aurora.load_model(model_folder)
    asked = aurora.Session.from_config(used, config)
    asked.watch(video)
    assert "".join(asked.ask("What moves?", aurora.Generation(max_new_tokens=12))) == answer(session(model, video))


def test_a_missing_file_is_named_when_it_is_to_be_watched(model: AuroraModel, tmp_path: Path) -> None:
    with pytest.raises(UnreadableVisual, match=r"none\.mp4 does not exist"):
        Session(model).watch(tmp_path / "none.mp4")


def test_options_take_the_place_of_those_of_the_config(model: AuroraModel, config: ModelConfig) -> None:
    assert Session.from_config(model, config, sampling=Sampling(frames=2)).sampling == Sampling(frames=2)


def test_a_saved_session_is_as_large_for_a_long_video(generic: AuroraModel, make_video, tmp_path: Path) -> None:
    sizes = []
    for frames in (8, 80):
        asked = session(generic, make_video(tmp_path / "clip.mp4", frames))
        answer(asked)
        asked.save(tmp_path / "seen.safetensors")
        sizes.append(sum(tensor.nbytes for tensor in asked.seen.memory.state.values()))
    assert sizes[0] == sizes[1]


def test_a_session_of_another_model_is_refused(generic: AuroraModel, make_model, video: Path, tmp_path: Path) -> None:
    asked = session(generic, video)
    answer(asked)
    asked.save(tmp_path / "seen.safetensors")
    other = Session(make_model(backbone={"name": "rwkv6", "hidden_size": 32, "layers": 3, "head_size": 16}))
    with pytest.raises(AuroraError, match="another model"):
        other.load(tmp_path / "seen.safetensors")


@pytest.mark.parametrize("content", [b"", b"no tensors here"])
def test_a_broken_saved_session_is_refused(generic: AuroraModel, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seen.safetensors").write_bytes(content)
    with pytest.raises(AuroraError, match="not a saved session"):
        Session(generic).load(tmp_path / "seen.safetensors")


def test_a_session_that_saw_nothing_has_nothing_to_save(generic: AuroraModel, tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="seen nothing"):
        Session(generic).save(tmp_path / "seen.safetensors")


def test_several_images_are_read_in_their_order(model: AuroraModel, video: Path, image: Path) -> None:
    orders = [session(model, *order).read_all(["Which came first?"]).hidden
              for order in ((image, video), (video, image), (image, video))]
    assert torch.equal(orders[0], orders[2]) and not torch.allclose(orders[0], orders[1], atol=1e-3)


def test_without_anything_to_see_only_the_text_is_read(model: AuroraModel) -> None:
    ids = [token for piece in model.prompt.layout([Turn("Hello?")], visual=False)
           for token in model.tokenizer.encode(piece.text)]
    memory = session(model).read_all(["Hello?"])
    runner = model.backbone.runner()
    torch.testing.assert_close(memory.hidden, read_texts(runner, blank(runner, 1), [ids]).hidden)


def test_frames_of_several_shapes_are_read_in_order(make_model) -> None:
    model = make_model(vision={"name": "siglip", "image_size": 16, "patch_size": 8, "width": 32, "layers": 3,
                               "heads": 2, "mlp_width": 64, "resize": "keep_aspect"})
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((16, 16, 3), (16, 40, 3), (16, 16, 3))]
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
def test_what_cannot_be_seen_is_named(model: AuroraModel, tmp_path: Path, name: str, content, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableVisual, match=re.escape(message)):
        answer(session(model, tmp_path / name))


def test_a_folder_is_no_video(model: AuroraModel, tmp_path: Path) -> None:
    with pytest.raises(UnreadableVisual, match="is a folder"):
        answer(session(model, tmp_path))


def test_a_truncated_image_is_refused(model: AuroraModel, image: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:1000])
    with pytest.raises(UnreadableVisual, match=r"cut\.png is not a readable image"):
        answer(session(model, tmp_path / "cut.png"))


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
