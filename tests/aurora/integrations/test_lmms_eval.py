"""The model of lmms-eval, against a stand-in of the few classes that it uses; tools/try_lmms_eval.py runs the real one.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aurora.errors import AuroraError
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel

CLASSES = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.instance", "lmms_eval.models",
           "lmms_eval.models.model_utils", "lmms_eval.models.model_utils.gen_metrics", "lmms_eval.models.registry_v2")
OURS = "aurora.integrations.lmms_eval"


class Lmms(ABC):
    """The abstract class as lmms-eval documents it."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *args: None)

    @abstractmethod
    def loglikelihood(self, requests: list[Any]) -> list[Any]: ...

    @abstractmethod
    def generate_until(self, requests: list[Any]) -> list[Any]: ...

    @abstractmethod
    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]: ...


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the model tells lmms-eval of its speed."""
    modules = {name: ModuleType(name) for name in CLASSES}
    found: list[dict[str, Any]] = []
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["lmms_eval.api.model"].lmms = Lmms  # type: ignore[attr-defined]
    modules["lmms_eval.api.instance"].GenerationResult = GenerationResult  # type: ignore[attr-defined]
    modules["lmms_eval.api.instance"].TokenCounts = TokenCounts  # type: ignore[attr-defined]
    modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest  # type: ignore[attr-defined]
    modules["lmms_eval.models.model_utils.gen_metrics"].log_metrics = (  # type: ignore[attr-defined]
        lambda **metrics: found.append(metrics))
    yield found
    sys.modules.pop(OURS, None)


@pytest.fixture
def make(logged: list[dict[str, Any]], model_folder: Path) -> Callable[..., Any]:
    from aurora.integrations.lmms_eval import Aurora

    return lambda **options: Aurora(**{"pretrained": str(model_folder), "prompt": "generic", **options})


def request(model: Any, context: str, visuals: list[Any], options: dict[str, Any] | None = None) -> Any:
    """As lmms-eval makes one: the document is looked up by task, split and number."""
    documents = model.task_dict.setdefault("toy", {}).setdefault("test", [])
    documents.append({"visuals": visuals})
    return SimpleNamespace(args=(context, {"max_new_tokens": 6, **(options or {})}, lambda doc: doc["visuals"],
                                 len(documents) - 1, "toy", "test"))


def texts(answers: list[Any]) -> list[str]:
    return [answer.text for answer in answers]


def test_the_entry_point_names_the_class(logged: list[dict[str, Any]]) -> None:
    from aurora.integrations import LMMS_CLASS, lmms_manifest

    assert lmms_manifest().simple_class_path == LMMS_CLASS == f"{OURS}.Aurora"
    found = [entry.value for entry in entry_points(group="lmms_eval.models") if entry.name == "auroralong"]
    assert found in ([], ["aurora.integrations:lmms_manifest"])  # none where Aurora is not installed again yet


def test_answers_are_those_of_the_model_whatever_is_batched(make: Callable[..., Any], model_folder: Path, video: Path,
                                                           image: Path) -> None:
    contexts = ["What?", "Where is it?", "Why?", "How many?"]
    expected = [str(VideoModel.from_pretrained(model_folder, overrides=["prompt=generic"]).watch(source).ask(
        context, options=Generation(max_new_tokens=6))) for context, source in zip(contexts, [video, image] * 2,
                                                                                  strict=True)]
    for size in (1, 3):
        model = make(batch_size=size)
        asked = [request(model, context, [str(source)]) for context, source in zip(contexts, [video, image] * 2,
                                                                                  strict=True)]
        assert texts(model.generate_until(asked)) == expected


def test_a_question_about_a_moment_sees_the_frames_up_to_it(make: Callable[..., Any], model_folder: Path, video: Path
                                                            ) -> None:
    model = make(batch_size=2)
    asked = [request(model, "What?", [{"video_path": str(video), "timestep": step}]) for step in (16, 24)]
    watcher = VideoModel.from_pretrained(model_folder, overrides=["prompt=generic"])
    films = [watcher.watch(video, stop=second + 1e-3) for second in (2.0, 3.0)]  # 8 frames a second
    assert texts(model.generate_until(asked)) == [
        str(film.ask("What?", options=Generation(max_new_tokens=6))) for film in films]


def test_images_are_seen_with_a_prompt_that_reads_them_again(make: Callable[..., Any]) -> None:
    model = make(prompt="sandwich")
    pictures = [Image.fromarray(np.full((40, 50, 3), value, dtype=np.uint8)) for value in (10, 240)]
    said = model.generate_until([request(model, "What?", [picture]) for picture in pictures])
    assert len(said) == 2 and all(isinstance(answer.text, str) for answer in said)


def test_the_time_to_the_first_token_is_told(make: Callable[..., Any], logged: list[dict[str, Any]], video: Path
                                             ) -> None:
    model = make(batch_size=2)
    model.generate_until([request(model, context, [str(video)]) for context in ("What?", "Who?", "Why?")])
    assert [metrics["additional_metrics"]["total_requests"] for metrics in logged] == [2, 1]
    more = logged[0]["additional_metrics"]
    assert more["ttft"] > more["ttft_watched"] > 0


def test_a_likelihood_is_a_log_probability_and_knows_the_greedy_answer(make: Callable[..., Any], video: Path) -> None:
    model = make()
    said, = texts(model.generate_until([request(model, "What?", [str(video)], {"max_new_tokens": 3})]))
    requests = [request(model, "What?", [str(video)]) for _ in range(2)]
    for one, wanted in zip(requests, ("zebra", lambda doc: "q"), strict=True):
        one.args = (one.args[0], wanted, *one.args[2:])
    found = model.loglikelihood(requests)
    assert all(log_prob < 0 for log_prob, _ in found)
    assert not found[0][1] or said.startswith("z")


def test_rounds_go_on_until_the_task_ends_them(make: Callable[..., Any], video: Path) -> None:
    model = make()
    first = request(model, "What?", [str(video)])

    def next_round(doc: Any, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        return doc["visuals"], f"And {round_idx}?", round_idx == 2, previous_output, None

    context, options, shown, *rest = first.args
    first.args = (context, options, shown, next_round, *rest)
    rounds, = model.generate_until_multi_round([first])
    assert len(rounds) == 2 and all(isinstance(text, str) for text in rounds)


@pytest.mark.parametrize(("options", "said"), [
    ({"batch_size": "auto"}, "batch_size 'auto' must be a number"),
    ({"fps": 1, "frames": 8}, "exactly one of fps"),
    ({"overrides": "merge=poll"}, "no merge named 'poll'"),
])
def test_wrong_arguments_are_refused(make: Callable[..., Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(AuroraError, match=said):
        make(**options)


def test_several_processes_and_beam_search_are_refused(make: Callable[..., Any], video: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    with pytest.raises(AuroraError, match="num_beams 4 is not offered"):
        model.generate_until([request(model, "What?", [str(video)], {"num_beams": 4})])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AuroraError, match="one process"):
        make()


def test_a_video_that_cannot_be_read_ends_the_run(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make()
    with pytest.raises(AuroraError, match="does not exist"):
        model.generate_until([request(model, "What?", [str(tmp_path / "gone.mp4")])])
