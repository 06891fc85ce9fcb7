import pytest
import torch
import torch.nn.functional as F

from aurora import losses
from aurora.losses import chunked_cross_entropy
from aurora.types import IGNORE

T, D, V = 70, 5, 11


def row(learned):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator, requires_grad=True)
    head = torch.randn(V, D, generator=generator, requires_grad=True)
    targets = torch.randint(0, V, (T,), generator=generator)
    targets[torch.rand(T, generator=generator) > learned] = IGNORE
    return hidden, head, targets


@pytest.mark.parametrize("learned", [1.0, 0.5, 0.05])
def test_chunks_change_neither_value_nor_gradient(learned, monkeypatch):
    monkeypatch.setattr(losses, "LOGIT_BYTES", 1)
    hidden, head, targets = row(learned)
    loss = chunked_cross_entropy(hidden, targets, lambda x: x @ head.T, V)
    expected = F.cross_entropy(hidden @ head.T, targets, ignore_index=IGNORE, reduction="sum")
    assert loss.count == (targets != IGNORE).sum() > 0
    torch.testing.assert_close(loss.total, expected)
    for got, want in zip(torch.autograd.grad(loss.total, (hidden, head)),
                         torch.autograd.grad(expected, (hidden, head)), strict=True):
        torch.testing.assert_close(got, want)


def test_a_row_without_targets_has_zero_gradients_for_everything():
    hidden, head, _ = row(1.0)
    loss = chunked_cross_entropy(hidden, torch.full((T,), IGNORE), lambda x: x @ head.T, V)
    assert loss.total == 0 and loss.count == 0
    for gradient in torch.autograd.grad(loss.total, (hidden, head)):
        assert gradient.eq(0).all()


def test_logits_never_exist_for_more_than_a_chunk(monkeypatch):
    monkeypatch.setattr(losses, "LOGIT_BYTES", 4 * V * 20)
    hidden, head, targets = row(1.0)
    sizes = []

    def logits(x):
        sizes.append(len(x))
        return x @ head.T

    chunked_cross_entropy(hidden, targets, logits, V).total.backward()
    assert max(sizes) == 20
    assert sum(sizes) == 2 * T  # once forward, once again in the backward pass


def test_ignored_positions_cost_no_logits():
    hidden, head, targets = row(0.05)
    sizes = []

    def logits(x):
        sizes.append(len(x))
        return x @ head.T

    chunked_cross_entropy(hidden, targets, logits, V)
    assert sum(sizes) == (targets != IGNORE).sum()


def test_the_loss_of_half_precision_is_summed_in_single():
    hidden, head, targets = row(1.0)
    hidden, head = hidden.detach().bfloat16(), head.detach().bfloat16()
    loss = chunked_cross_entropy(hidden, targets, lambda x: x @ head.T, V)
    assert loss.total.dtype == torch.float32
