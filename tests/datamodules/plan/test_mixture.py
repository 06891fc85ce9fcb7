import numpy as np

from aurora.mixture import read_mixture
from datamodules.plan.corpus import members


def chosen(entry, sizes):
    """Samples of every dataset with how often each is read."""
    read = members(read_mixture("m", entry), {name: np.arange(size) for name, size in sizes.items()})
    return [np.concatenate([np.repeat(one.samples, one.repeats) for one in of_dataset]) for of_dataset in read]


def test_the_same_samples_are_taken_whatever_else_is_read():
    alone, = chosen({"a": {"samples": 20}}, {"a": 1000})
    beside, _ = chosen({"a": {"samples": 20, "repeats": 2}, "b": 1}, {"a": 1000, "b": 5})
    assert len(alone) == 20 and sorted(set(beside.tolist())) == alone.tolist()


def test_asking_for_more_keeps_what_was_taken_before():
    few, many = (set(chosen({"a": {"samples": count}}, {"a": 1000})[0].tolist()) for count in (50, 300))
    assert few < many


def test_what_is_taken_is_spread_over_the_dataset():
    taken, = chosen({"a": {"samples": 500}}, {"a": 10_000})
    assert np.histogram(taken, 10, (0, 10_000))[0].min() > 25


def test_a_weight_above_the_dataset_reads_all_of_it_and_some_once_more():
    taken, = chosen({"visits": 250, "datasets": {"a": {"weight": 1.0}}}, {"a": 100})
    counts = np.bincount(taken)
    assert len(taken) == 250 and sorted(set(counts.tolist())) == [2, 3]
