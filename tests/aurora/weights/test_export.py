"""`aurora export`: the folder is the model, in every byte, and says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from aurora.cli import main
from aurora.config import load_config
from aurora.errors import AuroraError
from aurora.training.checkpoint.run_folder import fingerprint
from aurora.weights.io import weight_files
from aurora.weights.model_folder import load_model, model_hash, save_model


@pytest.fixture
def run(capsys):
    """(exit status, stdout, stderr) of a command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def exported(run, model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def export(*arguments: str | Path, source: Path = model_folder) -> Path:
        assert run("export", source, tmp_path / "out", *arguments)[0] == 0
        return tmp_path / "out"

    return export


def front_matter(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_an_export_is_the_model_and_saves_as_the_same_bytes(exported, model_folder, tmp_path: Path, size: str) -> None:
    folder = exported("--shard-size", size)
    assert len(weight_files(folder)) > 1 or size == "5GB"
    loaded, config = load_model(folder)
    given, _ = load_model(model_folder)
    for name, tensor in given.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    save_model(loaded, config, tmp_path / "again")
    for name in ("model.safetensors", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (model_folder / name).read_bytes()


def test_an_export_in_one_file_has_the_hash_of_the_model(exported, model_folder) -> None:
    assert model_hash(exported()) == model_hash(model_folder)


def test_exporting_an_export_gives_the_same_files(run, exported, tmp_path: Path) -> None:
    first = exported("--shard-size", "30KB", "--name", "one")
    assert run("export", first, tmp_path / "second", "--shard-size", "30KB", "--name", "one")[0] == 0
    files = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "second"): path.read_bytes()
                     for path in (tmp_path / "second").rglob("*") if path.is_file()}


def test_a_model_in_shards_answers_as_the_model(run, exported, model_folder, video) -> None:
    folder = exported("--shard-size", "30KB")
    answers = [run("ask", video, "What moves?", "--model", each, "--max-new-tokens", "8") for each in
               (model_folder, folder)]
    assert answers[0] == answers[1] and answers[0][0] == 0


def test_a_stage_may_start_from_shards(exported, make_config) -> None:
    config = replace(load_config("experiment=blocks"), model=make_config())
    first = fingerprint(config, "vision", str(exported("--shard-size", "30KB")))
    other = fingerprint(config, "vision", str(exported("--shard-size", "30KB", "--dtype", "bfloat16", "--force")))
    assert first["start"] != other["start"]


def test_an_export_in_another_dtype_says_so(exported) -> None:
    folder = exported("--dtype", "bfloat16")
    loaded, config = load_model(folder)
    assert config.dtype == "bfloat16" and {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert "parameters in bfloat16" in (folder / "README.md").read_text()


def test_a_tuned_initial_state_is_exported_too(make_model, make_config, exported, tmp_path: Path) -> None:
    model = make_model()
    model.backbone.start_from({"wkv": torch.randn_like(model.backbone.init_state(1)["wkv"])})
    save_model(model, make_config(), tmp_path / "tuned")
    loaded, _ = load_model(exported(source=tmp_path / "tuned"))
    assert torch.equal(loaded.backbone.init_state(2)["wkv"], model.backbone.init_state(2)["wkv"])


def test_the_card_has_parts_prompt_and_the_licence_that_is_given(exported) -> None:
    folder = exported("--license", "apache-2.0", "--name", "My model")
    card = (folder / "README.md").read_text()
    assert front_matter(folder)["license"] == "apache-2.0" and "\n# My model\n" in card
    assert "| backbone | rwkv6 | hidden_size 32, layers 2, head_size 16 |" in card and "<video>" in card
    assert "Nothing is recorded" in card and "None were measured" in card
    prompt = json.loads((folder / "prompt.json").read_text())
    assert [piece for piece in prompt["pieces"] if piece.get("visual")] == [{"visual": True}]
    assert prompt["pieces"][-1] == {"text": " {answer}\n\n", "learned": True}


def test_no_licence_is_made_up(exported) -> None:
    folder = exported()
    assert "license" not in front_matter(folder) and "named no licence" in (folder / "README.md").read_text()


def test_the_vocabulary_of_a_built_in_tokenizer_goes_along(make_model, make_config, exported, tmp_path: Path) -> None:
    parts = {"tokenizer": {"name": "rwkv_world"}}
    save_model(make_model(**parts), make_config(**parts), tmp_path / "world")
    folder = exported(source=tmp_path / "world")
    assert (folder / "rwkv_vocab_v20230424.txt").stat().st_size > 1e6
    assert load_model(folder)[0].tokenizer.encode("The Eiffel tower") == [6699, 304, 25740, 109, 39990]


# ---- training and results


@pytest.fixture
def stage(model_folder: Path, tmp_path: Path) -> Path:
    """RUN/second/model, made by two stages, and a result beside it."""
    for name, after in (("first", None), ("second", "first")):
        folder = tmp_path / "run" / name
        shutil.copytree(model_folder, folder / "model")
        recipe = {"after": after, "trained": ["connector"], "mixture": {f"data of {name}": 1}, "keep_ratio": 1.0,
                  "peak_lr": 1e-4, "global_batch": 8, "epochs": 1}
        base = {"vision": "/home/somebody/tower.safetensors", "backbone": "random"}
        start = {"model": "x"} if after else base
        (folder / "done.json").write_text(json.dumps({"stages": {name: recipe}, "seed": 7, "start": start,
                                                      "trainer": {"precision": "32-true"}}))
    result = tmp_path / "run" / "second" / "eval" / "heldout" / "result.json"
    result.parent.mkdir(parents=True)
    row = {"n": 4, "accuracy": 0.75, "low": 0.3, "high": 0.95, "chance": 0.25, "wrong_video_accuracy": None}
    result.write_text(json.dumps({**row, "families": {"needle": row}, "model": model_hash(model_folder),
                                  "keep_ratio": 0.5, "dtype": "float32"}))
    return tmp_path / "run" / "second"


def test_the_stages_are_told_in_their_order_without_paths(exported, stage) -> None:
    card = (exported(source=stage / "model") / "README.md").read_text()
    assert card.index("| first |") < card.index("| second |") and "data of second" in card
    assert "vision: tower.safetensors, backbone: random" in card and "somebody" not in card


def test_results_of_these_weights_are_shown_and_those_of_others_refused(run, exported, stage, tmp_path: Path) -> None:
    assert "| needle | 4 | 75.0 % |" in (exported(source=stage / "model") / "README.md").read_text()
    file = stage / "eval" / "heldout" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": "another"}))
    assert "needle" not in (exported("--force", source=stage / "model") / "README.md").read_text()
    status, _, err = run("export", stage / "model", tmp_path / "other", "--results", file)
    assert status == 2 and "measured on another model" in err and not (tmp_path / "other").exists()


# ---- from parts

SMALL = ("vision.image_size=32", "vision.patch_size=8", "vision.width=32", "vision.layers=2", "vision.heads=2",
         "vision.mlp_width=64", "backbone.hidden_size=32", "backbone.layers=2", "backbone.head_size=16",
         "tokenizer=bytes", "keep_ratio=0.5")


def test_a_model_is_made_of_a_siglip_folder_and_an_rwkv_file(run, make_model, make_config, video, tmp_path) -> None:
    parts = make_model(vision={**make_config().vision} | {"layers": 2})
    parts.vision.save_base(str(tmp_path / "tower"))
    parts.backbone.save_base(str(tmp_path / "finch.pth"))
    assert run("convert", tmp_path / "finch.pth", tmp_path / "fla", "--backbone", "rwkv6", "--to", "fla")[0] == 0
    assert run("convert", tmp_path / "fla", tmp_path / "shards", "--backbone", "rwkv6", "--shard-size", "20KB")[0] == 0
    status, _, err = run("export", "--from-parts", tmp_path / "out", "--", *SMALL,
                         f"base_weights.vision.siglip={tmp_path / 'tower'}",
                         f"base_weights.backbone.rwkv6={tmp_path / 'shards'}")
    assert (status, err) == (0, "") and not list(tmp_path.glob(".*"))
    loaded, _ = load_model(tmp_path / "out")
    for slot in ("vision", "backbone"):
        for name, tensor in getattr(parts, slot).state_dict().items():
            assert torch.equal(getattr(loaded, slot).state_dict()[name], tensor), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not trained as a whole. Its weights: vision: tower, connector: random, backbone: shards" in card
    assert run("ask", video, "What?", "--model", tmp_path / "out", "--max-new-tokens", "4")[0] == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (("{out}",), "give MODEL_FOLDER TARGET, or --from-parts TARGET"),
    (("{model}", "{out}", "--from-parts"), "give MODEL_FOLDER TARGET, or --from-parts TARGET"),
    (("{model}", "{out}", "--", "dtype=bfloat16"), "'dtype=bfloat16' goes with --from-parts"),
    (("{out}", "--from-parts", "--", "base_weights.vision.siglip=nowhere"), "nowhere does not exist"),
])
def test_parts_and_a_model_are_not_given_together(run, model_folder, tmp_path, arguments, message) -> None:
    places = {"out": tmp_path / "out", "model": model_folder}
    small = SMALL if "nowhere" in message else ()
    status, _, err = run("export", *(argument.format(**places) for argument in arguments), *small)
    assert (status, err.count("\n")) == (2, 1) and message in err and not (tmp_path / "out").exists()


# ---- errors


def test_a_broken_model_is_not_exported(run, model_folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    status, _, err = run("export", tmp_path / "model", tmp_path / "out")
    assert (status, err.count("\n")) == (2, 1) and "truncated" in err and not (tmp_path / "out").exists()


def test_weights_that_are_not_the_configs_are_not_exported(run, model_folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    config = yaml.safe_load((tmp_path / "model" / "config.yaml").read_text())
    config["backbone"]["layers"] = 3
    (tmp_path / "model" / "config.yaml").write_text(yaml.safe_dump(config))
    assert "another model" in run("export", tmp_path / "model", tmp_path / "out")[2]


def test_a_missing_shard_is_named(exported) -> None:
    folder = exported("--shard-size", "30KB")
    gone = weight_files(folder)[1]
    gone.unlink()
    with pytest.raises(AuroraError, match=f"not there: {gone.name}"):
        load_model(folder)


def test_an_export_into_the_model_is_refused(run, model_folder) -> None:
    for target in (model_folder, model_folder / "export"):
        assert "lies in the model" in run("export", model_folder, target, "--force")[2]


def test_an_export_that_is_there_is_not_replaced_without_force(run, exported, model_folder) -> None:
    folder = exported()
    assert "--force replaces it" in run("export", model_folder, folder)[2]
    assert run("export", model_folder, folder, "--force")[0] == 0


def test_what_is_no_model_is_named(run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        assert "is not a model folder" in run("export", tmp_path / folder, tmp_path / "out")[2]


def test_the_prompt_says_that_timestamps_stand_in_front_of_frames(exported, make_model, make_config, tmp_path) -> None:
    stamped = {"prompt": {"name": "generic", "timestamps": True}}
    save_model(make_model(**stamped), make_config(**stamped), tmp_path / "stamped")
    prompt = json.loads((exported(source=tmp_path / "stamped") / "prompt.json").read_text())
    assert {"visual": True, "timestamps": "h:mm:ss"} in prompt["pieces"]
