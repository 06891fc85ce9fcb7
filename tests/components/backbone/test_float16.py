"""What recurrences add up may be more than float16 holds, though a norm makes little of it afterwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aurora.interfaces import Backbone
from aurora.testing.backbone import VOCAB, bounds, build

LENGTH = 200


def read(model: Backbone, *, mixed: bool) -> tuple[Tensor, Tensor]:
    """The hidden states of a row, and all gradients of its loss as one vector."""
    x = torch.randn(LENGTH, model.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.float16, enabled=mixed):
        hidden, _ = model(x, bounds(LENGTH))
        loss = F.cross_entropy(model.logits(hidden).float(), torch.arange(LENGTH) % VOCAB)
    (2**10 * loss).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return hidden.detach(), gradient


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7", "gla"])
def test_what_is_beyond_the_range_of_float16_is_read_and_learned_from(name: str) -> None:
    model = build({"name": name, "hidden_size": 64, "layers": 2, "head_size": 32}).float()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("att.value.weight", "v_proj.weight")):
                weight.mul_(1000)
    for found, right in zip(read(model, mixed=True), read(model, mixed=False), strict=True):
        assert (found - right).norm() <= 0.05 * right.norm()
