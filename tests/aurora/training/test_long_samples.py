"""Training on samples that are laid over several rows, through the whole path."""

import pytest

from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards
from tools.tiny_training import curve, tiny_config, train


def test_a_step_over_several_rows_has_the_loss_of_one_over_one_row(tmp_path):
    turns = [{"from": "human", "value": "Count."}, {"from": "gpt", "value": " ".join(map(str, range(60)))}]
    samples = [ShardSample(f"{number}", {"conversations": turns}) for number in range(3)]
    write_shards(samples, tmp_path / "data" / "texts")
    losses = []
    for name, row_tokens in (("one", 800), ("several", 70)):
        config = {**tiny_config(tmp_path / name), "stage": "first"}
        config["data"] = {"name": "webdataset", "root": str(tmp_path / "data"), "row_tokens": row_tokens,
                          "row_frames": 4, "frames": 2, "workers": 0, "too_long": "split"}
        config["stages"]["first"].update(mixture={"texts": 1}, global_batch=3, trained=["backbone"])
        train(config)
        losses.append(float(curve(tmp_path / name, "first")[0][1]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
