from collections import Counter

import numpy as np
import pytest

from datamodules.plan.epoch import CHUNK, WINDOW_CHUNKS, EpochPlan, Members, schedule
from datamodules.plan.packing import Budget

BUDGET = Budget(4096, 24, 58)


def plan(samples=1500, repeats=(1,), groups=1, global_batch=32, seed=0, budget=BUDGET, **options):
    rng = np.random.default_rng(1)
    frames = rng.choice([0, 1, 1, 8], samples)
    parts = np.array_split(np.arange(samples), len(repeats))
    return EpochPlan([Members(part, repeat) for part, repeat in zip(parts, repeats, strict=True)],
                tokens=rng.integers(20, 400, samples) + 58 * frames, frames=frames,
                group=(frames > 1).astype(np.uint8) % groups, budget=budget,
                global_batch=global_batch, seed=seed, **options)


def rows(whole, world=1, *, epochs=1, position=(0, 0, 0), steps=None):
    """What every rank reads, row by row."""
    steps = whole.steps_before(epochs, 0) if steps is None else steps
    ranks = [schedule(whole, position=position, steps=steps, rank=rank, world=world) for rank in range(world)]
    return list(zip(*ranks, strict=True))


def steps(rounds):
    """The samples of every step, rank by rank."""
    done, current = [], []
    for row in rounds:
        current += [one.samples for one in row if one.samples]
        if row[0].closes_step:
            done.append(current)
            current = []
    assert not current
    return done


def test_every_sample_comes_exactly_as_often_as_its_dataset_repeats():
    seen = Counter(sample for row in rows(plan(repeats=(1, 3, 2)), epochs=2) for sample in row[0].samples)
    assert seen == Counter({sample: 2 * (1, 3, 2)[sample // 500] for sample in range(1500)})


@pytest.mark.parametrize("world", [2, 3, 8])
def test_steps_hold_the_same_rows_on_every_number_of_ranks(world):
    assert steps(rows(plan(), world)) == steps(rows(plan()))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_agree_on_the_number_of_rows_and_on_where_steps_close(world):
    for row in rows(plan(), world):
        assert len({(one.closes_step, one.position) for one in row}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("world", "other"), [(1, 3), (4, 2)])
def test_a_run_that_is_cut_anywhere_goes_on_with_the_same_steps_on_another_layout(world, other):
    whole, first = steps(rows(plan(), epochs=2)), rows(plan(), world, epochs=2)
    for cut in range(1, len(first), 19):
        done = first[:cut]
        while done and not done[-1][0].closes_step:
            done.pop()  # gradients of an unfinished step are lost with the run
        rest = rows(plan(), other, position=first[cut - 1][0].position, steps=len(whole) - len(steps(done)))
        assert steps(done) + steps(rest) == whole


def test_another_epoch_and_another_seed_have_another_order():
    first, second = plan().window(0, 0).packs, plan().window(1, 0).packs
    other = plan(seed=1).window(0, 0).packs
    assert len({tuple(np.concatenate(packs).tolist()) for packs in (first, second, other)}) == 3


def test_the_order_of_a_window_does_not_depend_on_what_was_planned_before():
    used = plan()
    used.window(0, 0), used.window(2, 0), used.steps_before(2, 0)
    assert [pack.tolist() for pack in used.window(1, 0).packs] == [pack.tolist() for pack in plan().window(1, 0).packs]


def test_groups_share_no_step():
    whole = plan(groups=2)
    for step in steps(rows(whole)):
        assert len({int(whole._group[sample]) for pack in step for sample in pack}) == 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("global_batch", [1, 7, 32, 100, 5000])
def test_the_number_of_steps_is_known_before_they_are_planned(groups, global_batch):
    whole = plan(groups=groups, global_batch=global_batch, repeats=(2, 1))
    assert len(steps(rows(whole, epochs=2))) == whole.steps_before(2, 0)


def test_a_step_holds_about_the_global_batch():
    sizes = [sum(map(len, step)) for step in steps(rows(plan(6000, global_batch=64)))]
    assert min(sizes) >= 62 and max(sizes) <= 66


def test_a_window_is_a_bounded_number_of_samples():
    whole = plan(CHUNK * WINDOW_CHUNKS + 1000)
    assert whole.windows == 2
    assert sum(map(len, whole.window(0, 0).packs)) <= CHUNK * WINDOW_CHUNKS
    assert len(steps(rows(whole))) == whole.steps_before(1, 0)


def test_the_schedule_goes_on_through_later_epochs_for_as_many_steps_as_asked_for():
    whole = plan()
    first = rows(whole, steps=3 * whole.steps_before(1, 0) // 2)
    assert len(steps(first)) == 3 * whole.steps_before(1, 0) // 2 and first[-1][0].position[0] == 1
    assert steps(first) == steps(rows(whole, epochs=2))[:len(steps(first))]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [4096, 20_000, 10**7])
def test_the_number_of_steps_of_so_many_tokens_is_known_before_they_are_planned(groups, batch):
    whole = plan(groups=groups, global_batch=batch, batch_unit="tokens", repeats=(2, 1))
    assert len(steps(rows(whole, epochs=2))) == whole.steps_before(2, 0)


def test_a_step_holds_about_so_many_tokens():
    whole = plan(6000, global_batch=60_000, batch_unit="tokens")
    sizes = [sum(int(whole._tokens[pack].sum()) for pack in step) for step in steps(rows(whole))]
    assert min(sizes) > 56_000 and max(sizes) < 64_000


@pytest.mark.parametrize("world", [2, 3])
def test_steps_of_tokens_hold_the_same_rows_on_every_number_of_ranks(world):
    whole = plan(global_batch=30_000, batch_unit="tokens")
    assert steps(rows(whole, world)) == steps(rows(whole))


def test_a_window_is_as_wide_as_steps_of_many_tokens_need():
    whole = plan(40_000, global_batch=8_000_000, batch_unit="tokens")
    assert whole.windows == 1 and len(steps(rows(whole))) > 1
