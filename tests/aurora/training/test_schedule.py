import math

import pytest

from aurora.training.optim import warmup_cosine, warmup_steps

PAPER = {"warmup_ratio": 0.03, "start_factor": 1e-5}


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1e-5), (15, 0.500005), (30, 1.0), (515, 0.5), (1000, 0.0), (2000, 0.0)],
)
def test_a_thousand_steps_of_the_paper(step, factor):
    assert math.isclose(warmup_cosine(step, total=1000, **PAPER), factor, abs_tol=1e-12)


def test_literal_factors_of_ten_steps():
    factors = [warmup_cosine(step, total=10, warmup_ratio=0.2, start_factor=0.0) for step in range(11)]
    assert factors == pytest.approx(
        [0.0, 0.5, 1.0, 0.96193977, 0.85355339, 0.69134172, 0.5, 0.30865828, 0.14644661, 0.03806023, 0.0])


def test_without_warmup_the_first_step_takes_the_peak_rate():
    assert warmup_cosine(0, total=10, warmup_ratio=0.0, start_factor=1e-5) == 1.0


@pytest.mark.parametrize(("total", "ratio", "steps"), [(1000, 0.03, 30), (10, 0.03, 1), (10, 0.0, 0), (50, 0.05, 2)])
def test_the_warmup_takes_its_share_of_the_steps_and_at_least_one(total, ratio, steps):
    assert warmup_steps(total, ratio) == steps
