import pytest
import torch
from tiny_training import MadeRows, curve, tiny_config

from aurora.assemble import build_model
from aurora.checkpoint import load_model
from aurora.training import parallel
from aurora.training.blocks import blocks
from aurora.training.run import train

STEPS = 3


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    run = tmp_path_factory.mktemp("single")
    train({**tiny_config(run, steps=STEPS), "stage": "all"})
    return run


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does_even_from_its_checkpoint(strategy, single, tmp_path, monkeypatch,
                                                                    start_process):
    config = {**tiny_config(tmp_path, steps=STEPS), "init_from": str(single / "first" / "model")}
    monkeypatch.setattr(MadeRows, "breaks_at", 6)
    with pytest.raises(RuntimeError):
        train(config)
    config["trainer"].update(strategy=strategy, devices=2, accelerator="cpu", activation_checkpointing="block")
    process = start_process(config)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert said.count("going on after step 1") == 1  # said by one of the two
    for (step, loss), (same_step, same_loss) in zip(curve(tmp_path), curve(single), strict=True):
        assert step == same_step and float(loss) == pytest.approx(float(same_loss), rel=1e-5)
    expected = load_model(single / "second" / "model")[0].state_dict()
    for name, tensor in load_model(tmp_path / "second" / "model")[0].state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


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
    added = parallel.with_agreed_frames(row, model)
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
    assert parallel.with_agreed_frames(row, model) is row


def test_every_block_of_encoder_and_backbone_is_a_unit():
    model = build_model(tiny_config("run"))
    kinds = [type(block) for block in blocks(model)]
    assert kinds == [model.vision.block_class] * 2 + [model.backbone.block_class] * 2
