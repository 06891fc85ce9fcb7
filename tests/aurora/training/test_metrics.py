import math
from pathlib import Path

import pytest
import torch

from aurora.training.callbacks.csv_logger import read_metrics
from aurora.training.metrics import Noise, gradient_norms, total_norm
from aurora.training.optim import Average
from aurora.weights.model_folder import load_model
from tools.tiny_training import MadeRows, curve, tiny_config, tiny_model, train


def test_norms_by_slot_add_up_to_that_of_all_gradients():
    model = tiny_model()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.1 * (number % 5))
    norms = gradient_norms(model)
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert norms.keys() == {"vision", "connector", "backbone"}
    assert total_norm(norms) == pytest.approx(float(expected), rel=1e-5)


def test_the_noise_scale_is_that_of_the_gradients_it_was_made_of():
    generator = torch.Generator().manual_seed(0)
    true, spread, small, large = torch.full((100,), 0.3), 2.0, 8, 64
    found = []
    for _ in range(4000):
        gradients = true + spread * torch.randn(large, 100, generator=generator)
        norms = [float(gradients[:count].mean(0).square().sum()) for count in (small, large)]
        found.append(Noise.between((norms[0], small), (norms[1], large)))
    assert sum(noise.trace for noise in found) / 4000 == pytest.approx(100 * spread**2, rel=0.02)
    assert sum(noise.square for noise in found) / 4000 == pytest.approx(float(true.square().sum()), rel=0.02)


def test_a_part_that_is_the_whole_says_nothing_of_noise():
    assert Noise.between((1.0, 8), (1.0, 8)) is None and Noise.between((1.0, 0), (1.0, 8)) is None


def test_the_average_follows_the_weights_as_its_formula_says():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average, expected = Average(model, 0.5), 0.0
    for step in range(5):
        torch.nn.init.constant_(model.weight, float(step + 1))
        average.update(step)
        weight = 1 - min(0.5, (1 + step) / (10 + step))
        expected += weight * (step + 1 - expected)
    assert float(average.weights()["weight"]) == pytest.approx(expected)


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path / "run", steps=6)
    config["trainer"]["measure_every"] = 2
    config["stages"]["first"]["average"] = 0.9
    return {**config, "stage": "first"}


@pytest.mark.slow
def test_the_model_of_a_stage_is_the_average_and_a_kill_does_not_change_it(config, tmp_path, monkeypatch):
    train(config)
    model = Path("first", "model", "model.safetensors")
    averaged = (tmp_path / "run" / model).read_bytes()
    monkeypatch.setattr(MadeRows, "breaks_at", 13)
    with pytest.raises(RuntimeError):
        train({**config, "run": str(tmp_path / "again")})
    monkeypatch.setattr(MadeRows, "breaks_at", None)
    train({**config, "run": str(tmp_path / "again")})
    assert (tmp_path / "again" / model).read_bytes() == averaged
    config["stages"]["first"]["average"] = None
    train({**config, "run": str(tmp_path / "last")})
    assert curve(tmp_path / "last", "first") == curve(tmp_path / "run", "first")  # training does not know of it
    last, mean = (dict(load_model(tmp_path / run / "first" / "model")[0].named_parameters()) for run in ("last", "run"))
    moved = [name for name in last if not torch.equal(last[name], mean[name])]
    assert moved and all(name.startswith("connector.") for name in moved)


def test_the_curve_holds_norms_by_slot_throughput_and_every_so_often_noise(config, tmp_path):
    config["trainer"]["peak_tflops"] = 1e-3
    train(config)
    rows = read_metrics(tmp_path / "run" / "first")
    assert all(float(row["grad_norm_connector"]) == pytest.approx(float(row["grad_norm"])) for row in rows)
    for name in ("noise_trace", "weight_norm_connector", "state_rms_wkv", "state_max_wkv"):
        assert [bool(row[name]) for row in rows] == [False, True] * 3
    assert all(float(row["mfu"]) == pytest.approx(float(row["teraflops"]) / 1e-3) for row in rows)
    assert all(math.isfinite(float(row["memory_gib"])) and float(row["memory_gib"]) > 0 for row in rows)
