import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.plan.packing import Budget, pack_rows


def lengths(samples=6000, frames=12, per_frame=58, seed=0):
    """Videos of so many frames with captions of usual lengths."""
    text = 40 + np.random.default_rng(seed).lognormal(5.5, 0.6, samples).astype(int)
    count = np.full(samples, frames)
    return np.minimum(text, 2000) + per_frame * count, count


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 12)), min_size=1, max_size=60),
       st.integers(1, 20), st.sampled_from([(500, 12), (250, 40), (10_000, 1000)]))
def test_every_sample_is_in_one_row_and_no_row_is_over_its_budgets(samples, most, room):
    tokens, frames = np.array([(text + frame, frame) for text, frame in samples]).T
    budget = Budget(*room, blank=20)
    rows = pack_rows(tokens, frames, budget, most)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(samples)))
    for row in rows:
        used = tokens[row].sum() + (0 if frames[row].sum() else budget.blank)
        assert used <= budget.tokens and frames[row].sum() <= budget.frames and len(row) <= most


@pytest.mark.parametrize(("frames", "budget", "least"), [
    (1, Budget(4096, 64), 0.995), (12, Budget(4096, 64), 0.97), (12, Budget(16384, 256), 0.99)])
def test_rows_are_nearly_full(frames, budget, least):
    tokens, count = lengths(frames=frames)
    rows = pack_rows(tokens, count, budget, 6000)
    assert tokens.sum() / (budget.tokens * len(rows)) > least


def test_what_shares_a_row_with_its_largest_sample_is_drawn_from_all():
    sizes = np.random.default_rng(0).choice([89, 97, 104, 112], 3000)
    rows = pack_rows(sizes, np.ones(3000, int), Budget(1024, 32), 16)
    mixed = sum(len(set(sizes[row])) >= 3 for row in rows)
    assert mixed / len(rows) > 0.9


def test_frames_can_be_what_fills_a_row():
    rows = pack_rows(np.full(400, 10), np.full(400, 8), Budget(4096, 32), 400)
    assert [len(row) for row in rows] == [4] * 100


def test_text_fills_the_gaps_of_rows_that_have_no_frame_left():
    tokens, frames = np.array([50] * 8 + [40] * 8), np.array([8] * 8 + [0] * 8)
    assert len(pack_rows(tokens, frames, Budget(100, 8), 100)) == 8


def test_the_same_samples_are_packed_the_same_way():
    first, second = (pack_rows(*lengths(500), Budget(4096, 64), 500) for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]
