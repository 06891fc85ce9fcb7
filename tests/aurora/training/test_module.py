import copy

import pytest
import torch
import yaml
from safetensors.torch import load_file

from aurora.errors import AuroraError
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.checkpoint.layout import newest_checkpoint
from aurora.training.module import AuroraModule
from aurora.training.optim import warmup_cosine
from aurora.weights.model_folder import load_model
from tools.tiny_training import MadeRows, curve, tiny_config, tiny_model, train


def weights(folder):
    return load_model(folder)[0].state_dict()


@pytest.mark.slow
def test_training_equals_a_plain_loop_over_whole_steps(tmp_path):
    config = tiny_config(tmp_path, steps=3)
    first = {**config, "stage": "first"}
    trained = weights(train({**config, "init_from": str(train(first))}))
    model, _ = load_model(tmp_path / "first" / "model")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.0)
    data = MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None, steps=3)
    for step in range(3):
        rate = 1e-2 * warmup_cosine(step, total=3, warmup_ratio=0.2, start_factor=1e-5)
        losses = [model(data.row(4 * step + row)) for row in range(4)]
        targets = sum(loss.count for loss in losses)
        (sum(loss.total for loss in losses) / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5)


def test_frozen_parts_are_bit_identical_afterwards(tmp_path):
    config = {**tiny_config(tmp_path, steps=2), "stage": "first"}
    config["stages"]["first"]["warmup_ratio"] = 0.0
    trained = weights(train(config))
    torch.manual_seed(config["seed"])
    before = tiny_model().state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], trained[name])}
    assert changed == {"connector"}


def test_the_scale_of_a_slot_scales_its_step(tmp_path):
    moved = {}
    for scale in (1.0, 0.25):
        config = {**tiny_config(tmp_path / str(scale), steps=1), "stage": "first"}
        config["stages"]["first"].update(lr_scale={"connector": scale}, warmup_ratio=0.0)
        after = weights(train(config))
        torch.manual_seed(config["seed"])
        before = tiny_model().state_dict()
        moved[scale] = {name: after[name] - before[name] for name in before if name.startswith("connector")}
    for name, step in moved[1.0].items():
        torch.testing.assert_close(moved[0.25][name], step / 4, rtol=1e-3, atol=1e-8)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch):
    config = {**tiny_config(tmp_path, steps=4), "stage": "first"}
    monkeypatch.setattr(MadeRows, "poisoned", (4,))
    saved = weights(train(config))
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert [float(row["skipped"]) for row in read_metrics(tmp_path / "first")] == [0, 1, 1, 1]


def test_too_many_bad_steps_in_a_row_end_the_run_with_the_good_weights_saved(tmp_path, monkeypatch):
    config = {**tiny_config(tmp_path, steps=9), "stage": "first"}
    config["trainer"]["max_bad_steps"] = 2
    monkeypatch.setattr(MadeRows, "poisoned", (4, 12, 16))  # of steps 2, 4 and 5
    with pytest.raises(AuroraError, match=r"2 steps in a row had no finite gradient.*peak_lr"):
        train(config)
    newest = newest_checkpoint(tmp_path / "first" / "checkpoints", print)
    assert newest.step == 5  # the next attempt goes on behind the bad steps
    stored = load_file(next(newest.path.glob("shard-*")))
    assert stored and all(torch.isfinite(tensor).all() for tensor in stored.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    config = {**tiny_config(tmp_path, steps=2), "stage": "first"}
    config["stages"]["first"].update(peak_lr=1e39, warmup_ratio=0.0)
    with pytest.raises(AuroraError, match="not finite and were not saved"):
        train(config)
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["step-0"]


@pytest.mark.slow
def test_recomputed_activations_change_nothing(tmp_path):
    config = tiny_config(tmp_path / "kept", steps=2)
    config["stage"] = "all"
    kept = train(config)
    recomputed = copy.deepcopy(config)
    recomputed["run"] = str(tmp_path / "recomputed")
    recomputed["trainer"]["activation_checkpointing"] = "block"
    train(recomputed)
    assert curve(tmp_path / "kept") == curve(tmp_path / "recomputed")
    assert kept.joinpath("model.safetensors").read_bytes() == \
        (tmp_path / "recomputed/second/model/model.safetensors").read_bytes()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", "float32"), ("bf16-true", "bfloat16")])
def test_half_precision_trains_and_saves_its_dtype(tmp_path, precision, dtype):
    config = {**tiny_config(tmp_path, steps=2), "stage": "first"}
    config["trainer"]["precision"] = precision
    saved = train(config)
    assert yaml.safe_load((saved / "config.yaml").read_text())["dtype"] == dtype
    assert {str(tensor.dtype) for tensor in weights(saved).values()} == {f"torch.{dtype}"}


def test_mixed_precision_narrows_no_backward_pass(tmp_path, monkeypatch):
    narrowed = []

    def backward(self, loss):
        narrowed.append(torch.is_autocast_enabled("cpu"))
        loss.backward()

    monkeypatch.setattr(AuroraModule, "manual_backward", backward)
    config = {**tiny_config(tmp_path, steps=2), "stage": "first"}
    config["trainer"]["precision"] = "bf16-mixed"
    train(config)
    assert narrowed and not any(narrowed)


def test_text_alone_reaches_a_connector_not_at_all(tmp_path):
    config = {**tiny_config(tmp_path, steps=2, framed=False), "stage": "first"}
    train(config)
    assert [row["grad_norm"] for row in read_metrics(tmp_path / "first")] == ["0.0", "0.0"]
