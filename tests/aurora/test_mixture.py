import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora.config import CONFIG_FOLDER, load_config, load_mixture
from aurora.errors import AuroraError
from aurora.mixture import Take, read_mixture, take

STAGES = ("pretrain", "vision", "language_image", "language_video")


def test_folders_with_repeats_are_a_mixture():
    assert take(read_mixture("m", {"a": 1, "b": 3}), {"a": 5, "b": 4}) == {"a": Take(5, 5), "b": Take(4, 12)}


def test_no_more_samples_are_taken_than_asked_for_or_there_are():
    mixture = read_mixture("m", {"a": {"samples": 3, "repeats": 2}, "b": {"samples": 9}})
    assert take(mixture, {"a": 5, "b": 4}) == {"a": Take(3, 6), "b": Take(4, 4)}


def test_a_weight_is_a_share_of_the_visits():
    mixture = read_mixture("m", {"visits": 100, "datasets": {"a": {"weight": 0.25}, "b": {"weight": 0.75}}})
    assert take(mixture, {"a": 40, "b": 30}) == {"a": Take(25, 25), "b": Take(30, 75)}


def test_a_mixture_whose_shares_round_to_nothing_is_refused():
    mixture = read_mixture("m", {"visits": 1, "datasets": {"a": {"weight": 0.2}}})
    with pytest.raises(AuroraError, match="reads no sample of a"):
        take(mixture, {"a": 40})


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.integers(1, 2000))
def test_a_group_that_holds_too_much_gives_of_each_the_same_share(sizes, limit):
    names = [f"d{number}" for number in range(len(sizes))]
    mixture = read_mixture("m", {"groups": {"g": {"samples": limit}}, "datasets": {n: {"group": "g"} for n in names}})
    taken = take(mixture, dict(zip(names, sizes, strict=True)))
    total = sum(sizes)
    assert sum(one.samples for one in taken.values()) == min(limit, total)
    for name, size in zip(names, sizes, strict=True):
        assert abs(taken[name].samples - size * min(1, limit / max(total, 1))) < 1


@pytest.mark.parametrize(("given", "message"), [
    ({}, "names no dataset"), (3, "names no dataset"), ({"a": True}, "give how often"),
    ({"a": 0}, r"m\.datasets\.a\.repeats is 0; it must be a whole number ≥ 1"),
    ({"a": {"repeat": 2}}, "no key 'repeat'. Did you mean 'repeats'"), ({"a": {"weight": 0.5}}, "visits"),
    ({"visits": 9, "datasets": {"a": {"weight": 2.0}}},
     "weight is 2.0; it must be a number above 0 and at most 1"), ({"../a": 1}, "not the name of a folder"),
    ({"a": {"samples": 0}}, "samples is 0"),
    ({"groups": {"x": {}}, "datasets": {"a": {"group": "y"}}}, "no group named 'y'"),
    ({"visits": -5, "datasets": {"a": {"weight": 0.5}}}, "visits is -5"),
    ({"groups": {"x": {"samples": 0}}, "datasets": {"a": {"group": "x"}}}, r"groups\.x\.samples is 0"),
    ({"visits": 9, "datasets": {"a": {"weight": 0.7}, "b": {"weight": 0.7}}}, "weights that sum to 1.4"),
])
def test_a_mixture_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(AuroraError, match=message):
        read_mixture("m", given)


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "mixture").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_mixture_can_be_read(path):
    assert read_mixture(path.stem, load_mixture(path.stem)).datasets


def test_a_stage_may_name_a_mixture_or_a_yaml_or_say_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("{clips: 2}")
    config = load_config(f"stages.vision.mixture={tmp_path / 'mine.yaml'}", "stages.pretrain.mixture={a: 1}",
                         "stages.language_image.mixture=vision")
    stages = config.tree["stages"]
    assert stages["vision"]["mixture"] == {"clips": 2} and stages["pretrain"]["mixture"] == {"a": 1}
    assert stages["language_image"]["mixture"] == load_mixture("vision")


def test_a_mixture_that_is_given_replaces_that_of_an_experiment():
    config = load_config("experiment=blocks", "stages.vision.mixture={mine: 1}")
    assert config.tree["stages"]["vision"]["mixture"] == {"mine": 1}


@pytest.mark.parametrize(("override", "message"), [
    ("stages.vision.mixture=visoin", "no mixture named 'visoin'. Did you mean 'vision'"),
    ("stages.visoin.mixture={a: 1}", "no 'stages.visoin'. Did you mean 'vision'"),
    ("stages.vision.mixture=nowhere.yaml", "mixture nowhere.yaml"),
])
def test_a_mixture_that_is_not_there_is_refused(override, message):
    with pytest.raises(AuroraError, match=message):
        load_config(override)
