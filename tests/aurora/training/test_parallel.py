import torch

from aurora.assemble import build_model
from aurora.testing.training import MadeRows, tiny_config
from aurora.training import parallel
from aurora.training.distributed.strategies import blocks


def test_a_blank_frame_changes_neither_loss_nor_gradient(monkeypatch):
    config = tiny_config("run")
    torch.manual_seed(0)
    model = build_model(config)
    row = MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None).row(2)
    assert row.frames == ()
    plain = model(row)
    plain.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    added = parallel.with_equal_frames(row, model)
    framed = model(added)
    framed.total.backward()
    assert len(added.frames) == 1 and framed.count == plain.count
    torch.testing.assert_close(framed.total, plain.total)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.get(name, torch.zeros_like(parameter)))


def test_a_row_with_frames_is_left_alone(monkeypatch):
    model = build_model(tiny_config("run"))
    row = MadeRows(seed=3, layout=None, tokenizer=model.tokenizer, prompt=None).row(0)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    assert parallel.with_equal_frames(row, model) is row


def test_every_block_of_encoder_and_backbone_is_a_unit():
    model = build_model(tiny_config("run"))
    kinds = [type(block) for block in blocks(model)]
    assert kinds == [model.vision.block_class] * 2 + [model.backbone.block_class] * 2
