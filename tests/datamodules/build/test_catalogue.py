import pytest

from aurora.config import load_config, load_mixture
from aurora.errors import AuroraError
from aurora.mixture import read_mixture, take
from aurora.registry import SOURCE
from datamodules.build.catalogue import known_datasets, load_dataset

STAGES = ("pretrain", "vision", "language_image", "language_video")


@pytest.mark.parametrize("name", known_datasets())
def test_the_source_of_every_dataset_takes_its_options(name):
    dataset = load_dataset(name)
    options = SOURCE.options(dataset.source["name"])
    needed = {key for key, option in options.items() if option.default is option.empty} - {"folder"}
    assert set(dataset.source) - {"name"} <= set(options) and needed <= set(dataset.source)


@pytest.mark.parametrize("stage", STAGES)
def test_every_dataset_of_the_papers_stages_is_in_the_catalogue(stage):
    assert set(load_config().stages[stage].mixture.datasets) <= set(known_datasets())


def published(stage):
    """Visits per group by the published counts; of a group with an unknown one, what the paper says."""
    mixture = read_mixture(stage, load_mixture(stage))
    sizes = {name: load_dataset(name).samples or part.samples for name, part in mixture.datasets.items()}
    taken = take(mixture, {name: size or 0 for name, size in sizes.items()})
    visits = dict.fromkeys(mixture.groups, 0)
    for name, part in mixture.datasets.items():
        visits[part.group] += taken[name].visits
    unknown = {mixture.datasets[name].group for name, size in sizes.items() if size is None}
    return {group: mixture.groups[group].paper if group in unknown else count for group, count in visits.items()}


@pytest.mark.parametrize(("stages", "total"), [(STAGES[:1], 1.3e6), (STAGES[1:2], 6.6e6), (STAGES[2:], 15.4e6)])
def test_the_stages_read_as_much_as_the_paper_says(stages, total):
    assert abs(sum(sum(published(stage).values()) for stage in stages) - total) <= 0.05e6


def test_the_groups_of_the_vision_stage_are_those_of_the_table():
    groups = read_mixture("vision", load_mixture("vision")).groups
    assert all(abs(count - groups[name].paper) <= 1000 for name, count in published("vision").items())


def test_a_dataset_of_ones_own_is_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{title: T, homepage: h, licence: l, samples: 3, kinds: [video], bytes: null, layout: x, "
                    "source: {name: llava, annotations: [a.json]}}")
    assert load_dataset(str(path)).name == "mine" and load_dataset(str(path)).kinds == ("video",)


@pytest.mark.parametrize(("text", "message"), [
    ("[]", "not a dataset of a catalogue"), ("{title: T}", "lacks homepage"), ("{: ", "not a dataset of a catalogue"),
    ("{title: T, homepage: h, licence: l, samples: many, kinds: [], bytes: null, layout: x, source: {}}",
     "samples is 'many'"),
])
def test_a_yaml_that_describes_no_dataset_is_refused(tmp_path, text, message):
    tmp_path.joinpath("mine.yaml").write_text(text)
    with pytest.raises(AuroraError, match=message):
        load_dataset(str(tmp_path / "mine.yaml"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AuroraError, match=r"no dataset named 'sharegpt4'\. Did you mean 'sharegpt4v'"):
        load_dataset("sharegpt4")
