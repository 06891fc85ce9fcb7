import pytest
import torch

from aurora.errors import AuroraError
from aurora.steps import StepLoader
from aurora.types import Frames, PackedBatch

STEPS, ROWS = 3, 2  # of an epoch, and rows of a step


class Numbered:
    """Rows whose first token is their number over all epochs; notes which were read."""

    def __init__(self):
        self.read = []

    def __call__(self, position, *, steps):
        first = position[0] * STEPS + position[1]
        for step in range(first, first + steps):
            for row in range(ROWS):
                self.read.append(step * ROWS + row)
                closes = row == ROWS - 1
                where = divmod(step + closes, STEPS)
                yield PackedBatch(torch.full((5,), self.read[-1]), torch.zeros(5), torch.tensor([0, 5]), (), 1, closes,
                                  (*where, 0))


def loader(rows=None, **options):
    return StepLoader(rows or Numbered(), **{"steps": STEPS, "epochs": 1, "identity": "mine", **options})


def numbers(steps):
    return [[int(row.tokens[0]) for row in step] for step in steps]


def test_a_pass_has_every_row_of_every_step_once():
    assert numbers(loader()) == [[0, 1], [2, 3], [4, 5]] and len(loader()) == STEPS


def test_rows_are_read_while_their_step_runs():
    rows = Numbered()
    steps = iter(loader(rows))
    assert rows.read == []
    step = next(steps)
    assert rows.read == []
    next(iter(step))
    assert rows.read == [0]
    next(iter(step))
    assert rows.read == [0, 1]


def test_a_step_counts_what_has_been_read_of_it():
    pixels = Frames(torch.zeros(4, 3, 2, 2), torch.zeros(4, 1))
    row = PackedBatch(torch.zeros(7), torch.zeros(7), torch.tensor([0, 7]), (pixels, pixels), 2)
    step = next(iter(loader(lambda position, steps: iter([row._replace(closes_step=False), row]))))
    assert (step.samples, step.tokens, step.frames) == (0, 0, 0)
    list(step)
    assert (step.samples, step.tokens, step.frames) == (4, 14, 16)


def test_the_position_moves_once_the_rows_of_a_step_are_exhausted():
    steps = loader()
    running = iter(steps)
    step = next(running)
    before = steps.state_dict()
    rows = iter(step)
    next(rows)
    next(rows)
    assert steps.state_dict() == before and steps.taken == 0
    assert next(rows, None) is None
    assert steps.state_dict() == {**before, "position": [0, 1, 0], "step": 1} and steps.taken == 1
    next(running)
    assert steps.taken == 1


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_loaded_state_goes_on_behind_its_last_step(done):
    before, after = loader(), loader()
    running = iter(before)
    read = [numbers([next(running)])[0] for _ in range(done)]
    next(running)  # handed out, not read
    after.load_state_dict(before.state_dict())
    assert read + numbers(after) == numbers(loader())
    assert after.taken == STEPS


def test_the_next_pass_reads_the_epochs_that_follow():
    steps = loader()
    first, second = numbers(steps), numbers(steps)
    assert first + second == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert steps.taken == 2 * STEPS
    assert numbers(loader(steps=2 * STEPS, epochs=2)) == first + second


def test_a_pass_of_several_epochs_is_followed_by_the_epochs_behind_them():
    steps = loader(steps=2 * STEPS, epochs=2)
    list(map(list, steps))
    assert numbers(steps)[0] == [12, 13]


def test_a_second_pass_is_resumed_as_a_first_one():
    before, after = loader(), loader()
    list(map(list, before))
    read = numbers([next(iter(before))])
    after.load_state_dict(before.state_dict())
    assert read + numbers(after) == [[6, 7], [8, 9], [10, 11]]
    assert after.taken == 2 * STEPS
    assert numbers(after)[0] == [12, 13]


def test_a_state_at_the_end_of_a_pass_goes_on_with_the_next():
    before, after = loader(), loader()
    list(map(list, before))
    after.load_state_dict(before.state_dict())
    assert numbers(after) == [[6, 7], [8, 9], [10, 11]]
    assert after.taken == 2 * STEPS


def test_passes_that_repeat_read_the_same_epoch_again():
    steps = loader(repeat=True)
    assert numbers(steps) == numbers(steps) == [[0, 1], [2, 3], [4, 5]]


def test_the_position_of_other_data_is_refused():
    with pytest.raises(AuroraError, match="data: the checkpoint's position belongs to another plan"):
        loader().load_state_dict(loader(identity="theirs").state_dict())


def test_data_that_ends_too_early_is_an_error():
    rows = Numbered()
    steps = iter(loader(lambda position, steps: rows(position, steps=1)))
    assert numbers([next(steps)]) == [[0, 1]]
    with pytest.raises(AuroraError, match="the data ended after step 1 of 3"):
        list(next(steps))
