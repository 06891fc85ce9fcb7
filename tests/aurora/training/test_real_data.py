"""Training on real shards through the real data module: the position of the rows is that of the optimizer."""

from dataclasses import replace

import numpy as np
import pytest

import aurora
from aurora.errors import AuroraError
from aurora.training.module import AuroraModule
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards
from tools.tiny_training import curve, train


@pytest.fixture(scope="module")
def shards(tmp_path_factory, sample):
    """Twenty-two images with a question each, in two shards."""
    root = tmp_path_factory.mktemp("data")
    write_shards([sample(number) for number in range(22)], root / "pictures", samples_per_shard=11)
    return root


@pytest.mark.slow
def test_a_run_on_shards_goes_on_exactly_where_it_broke(shards, tmp_path, monkeypatch, config_for):
    train(config_for(tmp_path / "whole", shards))
    config = config_for(tmp_path / "broken", shards)
    whole = curve(tmp_path / "whole", "first")
    for step in (3, len(whole) - 2):
        plain = AuroraModule.learn

        def break_down(self, row, plain=plain, step=step):
            if self.trainer.global_step == step and not row.closes_step:
                raise RuntimeError("power cut")
            plain(self, row)

        with monkeypatch.context() as patched:
            patched.setattr(AuroraModule, "learn", break_down)
            with pytest.raises(RuntimeError, match="power cut"):
                train(config)
    train(config)
    assert curve(tmp_path / "broken", "first") == whole
    assert [row for row, _ in whole] == list(range(1, len(whole) + 1))


@pytest.mark.slow
def test_samples_that_could_not_be_read_are_told_of_at_the_end(tmp_path, capfd, config_for, sample):
    whole = [sample(number) for number in range(22)]
    cut = replace(whole[3], media={"png": whole[3].media["png"][:50]})
    write_shards([*whole[:3], cut, *whole[4:]], tmp_path / "data" / "pictures")
    config = config_for(tmp_path, tmp_path / "data")
    config["data"]["max_bad_rate"] = 0.5
    train(config)
    listed = tmp_path / "first" / "bad_samples.jsonl"
    # twice per epoch, two epochs
    reported = f"first: 4 samples could not be read and were left out; they are listed in {listed}"
    assert reported in capfd.readouterr().out
    assert len(listed.read_text().splitlines()) == 4


def test_a_missing_dataset_is_named_before_anything_starts(tmp_path, capfd, config_for):
    with pytest.raises(AuroraError, match=f"below data.root {tmp_path}: pictures;"):
        train(config_for(tmp_path / "run", tmp_path))
    assert capfd.readouterr().out == "" and not (tmp_path / "run").exists()


def test_a_stage_is_trained_with_timestamps(tmp_path, config_for, sample, video):
    moving = {"video": "mp4", "conversations": [{"from": "human", "value": "<video>\nWhen?"},
                                                {"from": "gpt", "value": "At 0:00:04."}]}
    samples = [*map(sample, range(5)), ShardSample("video", moving, {"mp4": video.read_bytes()})]
    shards, losses = tmp_path / "data", {}
    write_shards(samples, shards / "pictures")
    for timestamps in (False, True):
        run = tmp_path / str(timestamps)
        config = config_for(run, shards)
        config["prompt"] = {"name": "generic", "timestamps": timestamps}
        config["stages"]["first"]["max_steps"] = 2
        train(config)
        losses[timestamps] = curve(run, "first")
        film = aurora.load(run / "first" / "model").watch([np.zeros((16, 16, 3), np.uint8)] * 3)
        assert film.model.model.prompt.timestamps is timestamps and film.ask("What is it?") is not None
    assert losses[True] != losses[False] and len(losses[True]) == 2
