import math
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from aurora.config import Config
from aurora.errors import AuroraError
from aurora.recipe import TrainerOptions
from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.distributed import precision
from aurora.training.distributed.precision import (
    LossScale,
    in_dtype,
    loss_scale_for,
    require_bfloat16,
)
from aurora.weights.model_folder import load_model
from tools.tiny_training import MadeRows, curve, tiny_config, train, train_together

STEPS = 12


def case(run, *, steps=STEPS, row_tokens=1, **options):
    """Everything learns in float16; with a `row_tokens` far too small the first scales are far too large."""
    config = tiny_config(run, steps=steps, row_tokens=row_tokens) | {"stage": "first"}
    config["stages"]["first"]["trained"] = ["vision", "connector", "backbone"]
    config["trainer"] |= {"accelerator": "cpu", "progress": "none", "precision": "16-mixed", **options}
    return config


def columns(run, *names):
    return [tuple(row[name] for name in names) for row in read_metrics(Path(run) / "first")]


# ---- the scale itself ------------------------------------------------------------------------------------------


def test_the_scale_is_halved_by_an_overflow_and_doubled_after_many_good_steps():
    scale = LossScale(max_targets=4096)
    assert scale.overflowed(5.0, math.nan) and scale.overflowed(5.0, math.inf)
    assert (scale.scale, scale.overflows) == (2**14, 2)
    scales = []
    for _ in range(4000):
        assert not scale.overflowed(5.0, 1.0)
        scales.append(scale.scale)
    assert [scales.count(value) for value in (2**14, 2**15, 2**16)] == [1999, 2000, 1]


def test_what_no_scale_can_help_is_no_overflow():
    scale = LossScale(max_targets=1)
    assert not scale.overflowed(math.inf, math.nan)  # lost in the forward pass
    assert scale.scale == precision.START
    found = [scale.overflowed(5.0, math.nan) for _ in range(20)]
    assert found == [True] * 16 + [False] * 4 and scale.scale == 1.0


@pytest.mark.parametrize(("most", "divisor"), [(1, 1), (4096, 4096), (5000, 8192)])
def test_sums_are_scaled_as_means_are_and_nothing_is_rounded(most, divisor):
    assert LossScale(max_targets=most).factor == 2**16 / divisor


def test_only_float16_is_scaled():
    plugin = precision.precision(TrainerOptions(precision="16-mixed"))["plugins"][0]
    assert loss_scale_for(plugin, 64).factor == 2**10 and loss_scale_for(plugin, None).factor == 2**4
    narrow = precision.precision(TrainerOptions(precision="bf16-true"))["plugins"][0]
    for other in (Precision(), MixedPrecision("bf16-mixed", "cpu"), narrow):
        scale = loss_scale_for(other, 64)
        assert not scale.overflowed(5.0, math.nan)
        assert (scale.factor, scale.metrics(), scale.state_dict()) == (1.0, {}, {})


def test_the_scaler_of_lightning_is_refused_with_the_plugin_that_is_right():
    with pytest.raises(AuroraError, match=r"Trainer\(precision='16-mixed'\) scales .*Float16\('cuda'\)"):
        loss_scale_for(MixedPrecision("16-mixed", "cuda", scaler=torch.amp.GradScaler("cpu")), 64)


def test_a_state_without_a_scale_changes_nothing():
    scale = LossScale(max_targets=1)
    scale.load_state_dict({})
    assert (scale.scale, scale.overflows) == (precision.START, 0)


def test_float16_beside_narrow_weights_is_refused():
    with pytest.raises(AuroraError, match=r"float32 weights, and dtype is bfloat16; take dtype=float32"):
        in_dtype(Config.parse(case("run") | {"dtype": "bfloat16"}))


@pytest.mark.parametrize("own", [True, False])
def test_a_gpu_without_bfloat16_is_told_what_is_right_for_it(own, monkeypatch):
    monkeypatch.setattr(precision, "_device_type", lambda options: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: own or including_emulation)
    require_bfloat16(TrainerOptions(precision="16-mixed"))
    expected = nullcontext() if own else pytest.raises(AuroraError, match=r"Tesla T4 has no bfloat16; .*16-mixed")
    with expected:
        require_bfloat16(TrainerOptions(precision="bf16-mixed"))


# ---- one process -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_float16_learns_as_float32_does(tmp_path):
    train(case(tmp_path / "wide", precision="32-true", row_tokens=4096))
    train(case(tmp_path / "narrow", row_tokens=4096))
    wide, narrow = ([float(loss) for _, loss in curve(tmp_path / run, "first")] for run in ("wide", "narrow"))
    assert narrow == pytest.approx(wide, rel=0.01) and narrow != wide
    assert wide[-1] < 0.9 * wide[0]
    assert {str(p.dtype) for p in load_model(tmp_path / "narrow/first/model")[0].parameters()} == {"torch.float32"}


@pytest.mark.slow
def test_an_overflow_is_left_out_and_counted_and_is_no_bad_step(tmp_path):
    train(case(tmp_path, max_bad_steps=1))
    found = columns(tmp_path, "overflows", "loss_scale", "skipped")
    overflows = [float(count) for count, _, _ in found]
    assert overflows[0] == 1 and overflows[-1] == overflows[-2] < STEPS  # from some step on it learns
    assert [float(scale) for _, scale, _ in found] == [2.0 ** (16 - count) for count in overflows]
    assert {float(skipped) for _, _, skipped in found} == {0}


@pytest.mark.slow
def test_an_overflow_leaves_the_weights_alone(tmp_path):
    start = load_model(train(case(tmp_path / "still", steps=1)))[0].state_dict()
    moved = load_model(train(case(tmp_path / "moved", steps=1, row_tokens=4096)))[0].state_dict()
    again = load_model(train(case(tmp_path / "again", steps=3)))[0].state_dict()
    assert columns(tmp_path / "again", "overflows") == [("1.0",), ("2.0",), ("3.0",)]
    assert all(torch.equal(tensor, again[name]) for name, tensor in start.items())
    assert not all(torch.equal(tensor, moved[name]) for name, tensor in start.items())


def test_a_scale_that_cannot_fall_further_leaves_it_to_the_rule_of_bad_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "LEAST", precision.START / 2)
    with pytest.raises(AuroraError, match="3 steps in a row had no finite gradient"):
        train(case(tmp_path, max_bad_steps=3))
    assert columns(tmp_path, "overflows", "skipped") == [("1.0", f"{step}.0") for step in range(4)]


def test_norms_and_noise_are_those_of_the_gradients_as_they_are(tmp_path):
    names = ("grad_norm", "grad_norm_vision", "noise_trace", "noise_square")
    found = {}
    for kind in ("32-true", "16-mixed"):
        train(case(tmp_path / kind, steps=1, row_tokens=4096, precision=kind, measure_every=1))
        found[kind] = [float(number) for number in columns(tmp_path / kind, *names)[0]]
    assert found["16-mixed"] == pytest.approx(found["32-true"], rel=0.02)


@pytest.mark.slow
def test_an_overflow_tells_nothing_of_noise(tmp_path):
    train(case(tmp_path, measure_every=1))
    assert [bool(trace) for trace, in columns(tmp_path, "noise_trace")] == [
        now == before for now, before in zip(*counts(tmp_path), strict=True)]


def counts(run):
    """How often it had overflowed after every step, and before."""
    after = [float(count) for count, in columns(run, "overflows")]
    return after, [0, *after[:-1]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "GROW_AFTER", 3)
        train(case(run))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("row", [6, 33])  # while it falls, between two good steps
def test_a_run_that_is_stopped_goes_on_with_its_scale(row, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "GROW_AFTER", 3)
    monkeypatch.setattr(MadeRows, "breaks_at", row)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(case(tmp_path))
    monkeypatch.setattr(MadeRows, "breaks_at", None)
    train(case(tmp_path))
    names = ("step", "loss", "grad_norm", "loss_scale", "overflows")
    assert columns(tmp_path, *names) == columns(uninterrupted, *names)
    scales = [float(scale) for scale, in columns(uninterrupted, "loss_scale")]
    assert max(b / a for a, b in pairwise(scales)) == 2  # it has grown


# ---- several processes -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process; two with whole weights, two in shards; two copies, from whose checkpoint, while the scale still
    falls, two shards go on. Two that share every row, and one alone, without an overflow."""
    folder = tmp_path_factory.mktemp("runs")

    def several(name, processes=2, stops_at=None, row_tokens=8, **options):
        config = case(folder / name, steps=5, row_tokens=row_tokens, checkpoint_every=1000, **options)
        return {"config": config, "processes": processes, "stops_at": stops_at}

    cases = [several("one", 1),
             several("copied", strategy="ddp"),
             several("sharded", strategy="fsdp", defer_gradient_sync=True),
             # half a row adds up to less than a row, and may overflow later
             several("together", strategy="fsdp", sequence_parallel=2, row_tokens=4096),
             several("alone", 1, row_tokens=4096),
             several("moved", strategy="fsdp_hybrid", shard_size=1, stops_at=1),
             several("moved", strategy="fsdp", activation_checkpointing="block")]
    train_together(cases, folder)
    return folder


def assert_learned_alike(run, expected):
    losses, right = ([float(loss) for _, loss in curve(folder, "first")] for folder in (run, expected))
    assert losses == pytest.approx(right, rel=1e-3)
    weights, right = (torch.cat([p.flatten() for p in load_model(folder / "first" / "model")[0].parameters()])
                      for folder in (run, expected))
    assert (weights - right).norm() <= 0.01 * right.norm()


@pytest.mark.parametrize("found", ["copied", "sharded", "moved"])
def test_processes_overflow_and_learn_together_as_one_does(found, runs):
    names = ("step", "overflows", "loss_scale", "skipped")
    assert columns(runs / found, *names) == columns(runs / "one", *names)
    after, before = counts(runs / "one")
    assert (after[0], before[-1]) == (1, after[-1])  # it began with an overflow, and ended without
    assert_learned_alike(runs / found, runs / "one")


def test_processes_that_share_a_row_scale_the_gradients_that_they_hand_on(runs):
    assert_learned_alike(runs / "together", runs / "alone")
