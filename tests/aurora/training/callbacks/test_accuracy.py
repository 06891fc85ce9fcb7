"""Accuracy on held-out questions while a tiny model is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora.curve import read_metrics
from aurora.errors import AuroraError
from aurora.evaluation.predictions import read_predictions
from aurora.evaluation.run import Protocol, evaluate
from aurora.training.callbacks.accuracy import FamilyAccuracy, GroupMeans
from aurora.weights.model_folder import load_model
from tools.tiny_training import plan_stages, register, tiny_config, train, train_together

register()

TARGET = "aurora.training.callbacks.accuracy.FamilyAccuracy"
FAMILIES = ("colour", "count", "order")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Four questions of each of three families about four videos, and one that is open."""
    folder = tmp_path_factory.mktemp("questions")
    for clip in range(4):
        make_video(folder / f"{clip}.mp4", 6, seed=clip)
    lines = [{"id": f"{family}{clip}", "video": f"{clip}.mp4", "family": family, "question": "Which?",
              "options": ["yes", "no"], "answer": (clip + number) % 2}
             for number, family in enumerate(FAMILIES) for clip in range(4)]
    lines.append({"id": "open", "video": "0.mp4", "family": "caption", "question": "What?", "answer": "a square"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config_of(run: Path, questions: Path | None, **options: Any) -> dict[str, Any]:
    config = tiny_config(run, steps=4)
    config["trainer"] |= {"progress": "none", **options.pop("trainer", {})}
    config["stages"]["second"] |= {"after": None, "validation": {"mixture": {"rows": 1}, "every": 2, "max_steps": 1},
                                   **options.pop("recipe", {})}
    if questions is not None:
        config["trainer"]["callbacks"] = {"accuracy": {
            "_target_": TARGET, "data": str(questions), "score": "likelihood", **options}}
    return config


def found(run: Path, name: str = "val_accuracy") -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in read_metrics(run / "second") if row.get(name)}


def weights(run: Path) -> bytes:
    return (run / "second" / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without such questions."""
    run = tmp_path_factory.mktemp("plain")
    train(config_of(run, None))
    return run


def test_it_is_what_an_evaluation_of_the_saved_model_gives_and_training_does_not_know_of_it(
        questions, plain, tmp_path) -> None:
    train(config_of(tmp_path, questions))
    assert weights(tmp_path) == weights(plain)
    model, config = load_model(tmp_path / "second" / "model")
    result = evaluate(model, config, questions, output=tmp_path / "eval", protocol=Protocol(score="likelihood"))
    assert set(found(tmp_path)) == {2, 4} and 0 < result["accuracy"] < 1
    assert found(tmp_path)[4] == pytest.approx(result["accuracy"])
    for family in FAMILIES:
        assert found(tmp_path, f"val_accuracy_{family}")[4] == pytest.approx(result["families"][family]["accuracy"])
    assert "val_accuracy_caption" not in read_metrics(tmp_path / "second")[-1]
    assert [row["loss"] for row in read_metrics(tmp_path / "second")] == [
        row["loss"] for row in read_metrics(plain / "second")]


@pytest.mark.slow
def test_a_checkpoint_of_the_best_accuracy_is_kept(questions, tmp_path) -> None:
    config = config_of(tmp_path, questions)
    config["trainer"]["callbacks"]["best"] = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val_accuracy", "mode": "max",
        "dirpath": str(tmp_path / "best"), "filename": "{step}-{val_accuracy:.3f}"}
    train(config)
    (kept,) = (tmp_path / "best").glob("*.ckpt")
    best = max(found(tmp_path).values())
    first = min(step for step, accuracy in found(tmp_path).items() if accuracy == best)
    assert kept.name == f"step={first}-val_accuracy={best:.3f}.ckpt"


@pytest.mark.slow
def test_the_average_and_adapters_are_in_what_is_asked(questions, tmp_path) -> None:
    lora = {"trained": ["connector"], "adapters": {"backbone": {"lora": {"rank": 2, "alpha": 64}}}, "average": 0.5}
    train(config_of(tmp_path, questions, recipe=lora, per_family=1))
    model, config = load_model(tmp_path / "second" / "model")
    callback = FamilyAccuracy(data=str(questions), per_family=1, score="likelihood")
    assert [item.id for item in callback.items] == ["colour0", "count0", "order0"]
    result = evaluate(model, config, questions, output=tmp_path / "eval", protocol=Protocol(score="likelihood"))
    made = read_predictions(tmp_path / "eval" / "predictions.jsonl")[1]
    right = [one.answer == item.answer for item in callback.items for one in made if one.id == item.id]
    assert found(tmp_path)[4] == pytest.approx(sum(right) / 3) and result["n"] == 12


@pytest.mark.slow
def test_any_benchmark_with_choices_can_be_asked(questions, tmp_path) -> None:
    """LLaVA's conversations, with families; those with open answers are left out."""
    records = [{"id": str(clip), "video": f"{clip}.mp4", "family": f"half {clip // 2}", "conversations": [
        {"from": "human", "value": "<video>\nWhich?\nA. yes\nB. no"}, {"from": "gpt", "value": "AB"[clip % 2]}]}
        for clip in range(4)]
    records.append({"id": "open", "video": "0.mp4", "conversations": [
        {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A square."}]})
    (questions / "qa.json").write_text(json.dumps(records))
    train(config_of(tmp_path, questions, benchmark={"name": "llava", "annotations": "qa.json"}))
    assert set(found(tmp_path)) == {2, 4}
    halves = [found(tmp_path, f"val_accuracy_half {half}")[4] for half in (0, 1)]
    assert found(tmp_path)[4] == pytest.approx(sum(halves) / 2)


def test_families_weigh_what_they_weigh_in_the_benchmark(questions, tmp_path) -> None:
    """MVBench's score is the mean of its tasks, of which one has three questions here and the other one."""
    tasks = {"action_count": [0, 1, 2], "object_shuffle": [3]}
    for task, clips in tasks.items():
        (questions / f"{task}.json").write_text(json.dumps([
            {"video": f"{clip}.mp4", "question": "Which?", "candidates": ["yes", "no"],
             "answer": ("yes", "no")[clip % 2]} for clip in clips]))
    benchmark = {"name": "mvbench", "subtasks": list(tasks), "videos": "."}
    train(config_of(tmp_path, questions, benchmark=benchmark))
    model, config = load_model(tmp_path / "second" / "model")
    result = evaluate(model, config, questions, output=tmp_path / "eval", benchmark=benchmark,
                      protocol=Protocol(score="likelihood"))
    assert result["score"] != pytest.approx(100 * result["accuracy"])
    assert found(tmp_path)[4] == pytest.approx(result["score"] / 100)


def test_a_video_may_be_a_folder_of_pictures(tmp_path) -> None:
    record = {"video": "castle", "question": "Who?", "candidates": ["He", "She"], "answer": "She", "start": 0, "end": 2}
    (tmp_path / "episodic_reasoning.json").write_text(json.dumps([record]))
    (tmp_path / "video/tvqa/frames_fps3_hq/castle").mkdir(parents=True)
    callback = FamilyAccuracy(data=str(tmp_path), benchmark={"name": "mvbench", "subtasks": ["episodic_reasoning"]})
    assert [item.video for item in callback.items] == ["video/tvqa/frames_fps3_hq/castle"]


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_share_the_videos_and_agree(questions, tmp_path) -> None:
    cases = []
    for name, options in {"one": {}, "copies": {"strategy": "ddp"}, "shards": {"strategy": "fsdp"}}.items():
        config = config_of(tmp_path / name, questions, trainer={"accelerator": "cpu", **options})
        cases.append({"config": config, "processes": 2 if options else 1})
    train_together(cases, tmp_path)
    alone = found(tmp_path / "one")
    assert len(alone) == 2 and found(tmp_path / "copies") == found(tmp_path / "shards") == alone
    for family in FAMILIES:
        name = f"val_accuracy_{family}"
        assert found(tmp_path / "copies", name) == found(tmp_path / "shards", name) == found(tmp_path / "one", name)


def test_a_video_that_cannot_be_read_is_wrong_and_a_missing_one_refused(questions, tmp_path) -> None:
    broken = tmp_path / "questions"
    shutil.copytree(questions, broken)
    for clip in range(4):
        (broken / f"{clip}.mp4").write_bytes(b"no video")
    train(config_of(tmp_path / "run", broken))
    assert found(tmp_path / "run") == {2: 0.0, 4: 0.0}
    (broken / "2.mp4").unlink()
    with pytest.raises(AuroraError, match=r"trainer\.callbacks\.accuracy: .*1 videos are missing .*, such as 2\.mp4"):
        train(config_of(tmp_path / "other", broken))


@pytest.mark.parametrize(("options", "message"), [
    ({"per_family": 0}, "per_family is 0; it must be a whole number ≥ 1"),
    ({"score": "luck"}, "score 'luck' is unknown. Known: text, likelihood"),
    ({"benchmark": "block"}, r"no benchmark named 'block'.*Did you mean 'blocks'"),
    ({"benchmark": {"name": "blocks", "sed": 1}}, "sed"),
    ({"benchmark": "activitynet_qa"}, "'question_id' must be a text"),
    ({"family": 3}, "family"),
])
def test_options_that_make_no_sense_are_refused_before_training(options, message, questions, tmp_path) -> None:
    with pytest.raises(AuroraError, match=message):
        train(config_of(tmp_path, questions, **options))
    assert not (tmp_path / "second" / "model").exists()


def test_without_validation_it_would_never_be_asked(questions, tmp_path) -> None:
    config = config_of(tmp_path, questions)
    del config["stages"]["second"]["validation"]
    with pytest.raises(AuroraError, match="FamilyAccuracy acts after each validation, and no stage has any"):
        plan_stages(config)


def test_means_are_by_group() -> None:
    means = GroupMeans(3)
    means.update(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 2]))
    means.update(torch.tensor([0.0]), torch.tensor([1]))
    each, whole = means.compute()
    assert each.tolist() == [0.5, 0.0, 1.0] and float(whole) == 0.5
