import pytest

from aurora.errors import AuroraError
from aurora.instantiate import instantiate


def test_a_callback_of_lightning_is_built_with_its_options():
    timer = instantiate({"_target_": "lightning.pytorch.callbacks.Timer", "interval": "epoch"})
    assert type(timer).__name__ == "Timer"


def test_entries_inside_entries_are_built_too():
    built = instantiate({"parts": [{"_target_": "lightning.pytorch.callbacks.Timer"}], "plain": 3})
    assert type(built["parts"][0]).__name__ == "Timer" and built["plain"] == 3


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.open",
        "torch.load",
        "torch.hub.load",
        "torch.optimizers.Adam",
        "lightningx.Evil",
        "lightning.pytorch.trainer.trainer.os.system",  # a module shows what it imports
        "lightning.pytorch.trainer.trainer.torch.load",
        "aurora.training.checkpoint.layout.os.remove",
        "aurora.training.checkpoint.layout.Path",
        "lightning.fabric.utilities.cloud_io._load",  # no class
        "lightning.pytorch.callbacks.NoSuchThing",
        "lightning.pytorch.callbacks",
        "torch.optim.",
        17,
    ],
)
def test_anything_outside_the_allow_list_is_refused(target):
    with pytest.raises(AuroraError, match="_target_"):
        instantiate({"_target_": target})


def test_a_forbidden_entry_deep_inside_is_refused():
    with pytest.raises(AuroraError, match="not allowed"):
        instantiate({"_target_": "lightning.pytorch.callbacks.Timer", "duration": [{"x": {"_target_": "os.system"}}]})


def test_a_misspelt_option_is_an_error_for_the_user():
    with pytest.raises(AuroraError, match="intervall"):
        instantiate({"_target_": "lightning.pytorch.callbacks.Timer", "intervall": "epoch"})
