import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.training.checkpoint.layout import checkpoint_path
from aurora.training.stage import from_checkpoint, is_checkpoint
from aurora.weights.model_folder import load_model
from tools.tiny_training import tiny_config, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Both stages, the second with an average."""
    folder = tmp_path_factory.mktemp("run")
    config = {**tiny_config(folder, steps=3), "stage": "all"}
    config["stages"]["second"]["average"] = 0.9
    train(config)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["first", "second"])
def test_the_last_checkpoint_is_the_model_of_the_stage(run, stage):
    folder = checkpoint_path(run / stage / "checkpoints", 3)
    assert is_checkpoint(folder) and not is_checkpoint(run / stage / "model")
    found, expected = from_checkpoint(folder)[0].state_dict(), load_model(run / stage / "model")[0].state_dict()
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def test_a_checkpoint_is_exported_as_one_model(run, tmp_path):
    folder = checkpoint_path(run / "second" / "checkpoints", 2)
    assert main(["export", str(folder), str(tmp_path / "out")]) == 0
    found, last = (load_model(path)[0].state_dict() for path in (tmp_path / "out", run / "second" / "model"))
    assert any(not found[name].equal(last[name]) for name in last)


def test_a_broken_checkpoint_is_no_model(run):
    folder = checkpoint_path(run / "first" / "checkpoints", 2)
    shard = next(folder.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(AuroraError, match="is broken"):
        from_checkpoint(folder)
