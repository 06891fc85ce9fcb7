"""`aurora plan` and `aurora shards list` as they are typed."""

import json

import pytest

from aurora.cli import main
from datamodules.blocks.build import build
from datamodules.build.catalogue import known_datasets

TINY = ["experiment=blocks", "stage=language_video"]


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        return main(list(map(str, arguments))), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    build(folder, scale=0.01, workers=1)
    return folder


@pytest.fixture
def planned(run, blocks, tmp_path):
    def planned(*overrides):
        status, out, _ = run("plan", *TINY, f"data.root={blocks}", f"run={tmp_path}", "--json", "--", *overrides)
        assert status == 0
        return json.loads(out)["stages"]["language_video"]

    return planned


def test_what_is_planned_is_what_training_reads(planned, blocks):
    stage = planned("stages.language_video.epochs=2")
    data = stage["data"]
    read, = data["datasets"]
    samples = json.loads((blocks / "language_video" / "index.json").read_bytes())["shards"][0]["samples"]
    assert read["samples"] == read["visits"] == samples and read["counted"] == "measured"
    assert stage["steps"] == 2 * data["steps_per_epoch"] and 0 < data["fill"]["tokens"] <= 1
    tars = (blocks / "language_video").glob("*.tar")
    assert 0.7 < read["bytes"] / sum(tar.stat().st_size for tar in tars) < 1


def test_repeats_and_limits_are_planned(planned):
    read, = planned("stages.language_video.mixture={language_video: {samples: 5, repeats: 3}}")["data"]["datasets"]
    once, = planned("stages.language_video.mixture={language_video: {samples: 5}}")["data"]["datasets"]
    assert (read["samples"], read["visits"]) == (5, 15)
    assert all(read[key] == 3 * once[key] for key in ("tokens", "frames", "bytes"))


@pytest.mark.slow
def test_what_is_held_out_is_planned_with_the_steps_that_it_follows(planned, run, blocks, tmp_path):
    held_out = "stages.language_video.validation={mixture: {vision: {samples: 6}}, every: 3}"
    plain, stage = planned(), planned(held_out)
    shown = stage["validation"]
    assert plain["validation"] is None and plain["steps"] == stage["steps"]
    assert shown["times"] == -(-stage["steps"] // 3) and (shown["visits"], shown["datasets"]) == (6, ["vision"])
    part = ("stages.language_video.validation.max_steps=1", "stages.language_video.global_batch=3")
    assert planned(held_out, *part)["validation"]["visits"] == 3 and shown["tokens"] > 6 * shown["frames"]
    two = held_out.replace("6}}", "6}, language_video: {samples: 12}}")
    assert planned(two, *part)["validation"]["visits"] == 3 + 3  # so many steps of each
    said = run("plan", *TINY, f"data.root={blocks}", f"run={tmp_path}", held_out)[1]
    assert f"checks   {shown['times']} times on vision: each time about" in said


@pytest.fixture
def trained(run, blocks, tmp_path):
    """What a stage takes on GPUs."""
    def trained(*overrides):
        said = run("plan", "--json", "--gpu", "H100", *TINY, f"data.root={blocks}", f"run={tmp_path}", *overrides)[1]
        return json.loads(said)["stages"]["language_video"]["training"]

    return trained


@pytest.mark.slow
def test_a_part_of_the_steps_takes_its_part_of_the_hours(planned, trained):
    steps, some = planned()["steps"], "stages.language_video.max_steps=1"
    for hours in (lambda *given: planned(*given)["data"]["decode_core_hours"], lambda *given: trained(*given)["hours"]):
        assert hours(some) == pytest.approx(hours() / steps, rel=0.5)


def test_validation_takes_time_and_no_memory(trained):
    held_out = "stages.language_video.validation={mixture: {language_video: 1}, every: 1000000}"
    plain, shown = trained(), trained(held_out)
    assert shown["memory"] == plain["memory"]
    assert 1.05 < shown["hours"] / plain["hours"] < 1.5  # one forward pass more than those that learn


def test_what_is_missing_shrunk_or_dropped_is_told(planned, run, blocks, tmp_path):
    out = run("plan", *TINY, f"data.root={blocks}", f"run={tmp_path}", "data.row_frames=3",
              "stages.language_video.mixture={language_video: 1, elsewhere: 1}")[1]
    assert "missing  elsewhere" in out and "shrunk   videos read with fewer frames: language_video 74" in out
    assert "dropped  longer than a row, left out: language_video 4" in out


def test_a_dataset_with_fewer_samples_than_published_is_told(run, blocks, tmp_path):
    tmp_path.joinpath("miradata").symlink_to(blocks / "language_video")
    out = run("plan", *TINY, f"data.root={tmp_path}", f"run={tmp_path}",
              "stages.language_video.mixture={miradata: 1}")[1]
    assert "fewer    samples than published: miradata 80 of 788,000" in out


def test_tokens_may_be_what_a_batch_counts(planned):
    stage = planned("data.batch_unit=tokens", "stages.language_video.global_batch=2048")
    tokens = sum(read["tokens"] for read in stage["data"]["datasets"])
    assert abs(stage["data"]["steps_per_epoch"] - tokens / 2048) <= 1


def test_the_papers_stages_are_planned_from_published_counts(run):
    status, out, _ = run("plan", "--published", "--json")
    shown = json.loads(out)
    assert status == 0 and set(shown["tables"]) == {"B2", "B3", "B4"}
    assert sum(group["visits"] for group in shown["tables"]["B4"]["groups"].values()) == 15_428_000
    assert sum(group["samples"] for group in shown["tables"]["B4"]["groups"].values()) == 13_769_000


def test_published_counts_are_shown_beside_the_papers(run):
    out = run("plan", "--published")[1]
    assert "published counts, assumed lengths" in out and "15,428,000" in out and "chatterbox ~" in out


def test_a_plan_without_shards_is_answered_with_what_to_do(run, tmp_path):
    status, _, error = run("plan", f"data.root={tmp_path}", "stage=vision")
    assert status == 2 and "aurora plan --published" in error


@pytest.mark.parametrize(("root", "said"), [
    ("none", "none, which is not a folder"), ("BLOCKS", "which holds heldout, language_image, language_video"),
    ("s3:/x", "shards are read from a local folder, or from one of s3://"),
])
def test_a_root_without_the_datasets_is_said_to_be_what_it_is(run, blocks, root, said):
    status, _, error = run("plan", *TINY, f"data.root={root.replace('BLOCKS', str(blocks))}",
                           "stages.language_video.mixture={vison: 1}")
    assert status == 2 and said in error and error.count("\n") == 1


def test_data_without_a_plan_is_named(run, blocks):
    status, _, error = run("plan", *TINY, "data=streaming", f"data.root={blocks}", "data.rows_per_step=2",
                           "stages.language_video.max_steps=1")
    assert status == 2 and "data 'streaming' has no plan of its own to show" in error


def test_every_dataset_of_the_catalogue_is_listed(run):
    status, out, _ = run("shards", "list", "--json")
    assert status == 0 and sorted(json.loads(out)) == known_datasets()
    assert "miradata" in run("shards", "list")[1] and "dense_caption" in run("shards", "list", "miradata")[1]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), [
    (["--gpu", "H100", "--used", "2"], "--used 2.0 is a share of the peak; it must be at most 1"),
    (["--gpu", "H100", "--used", "nan"], "'--used': must be above 0, not 'nan'"),
    (["--gpu", "H100", "--price", "-1"], "'--price': must be above 0, not '-1'"),
    (["--gpu", "H100", "--peak-tflops", "0"], "'--peak-tflops': must be above 0, not '0'"),
    (["--price", "2"], "--price and --peak-tflops need --gpu NAME"),
    (["--image-rate", "0"], "'--image-rate': must be above 0, not '0'"),
    (["--gpu", "H100", "trainer=ddp", "trainer.sequence_parallel=3"], "does not divide the 8 processes"),
    (["--gpu", "H100", "trainer=fsdp_hybrid", "trainer.shard_size=5"], "does not divide the 8 processes"),
])
def test_hardware_that_makes_no_sense_is_one_line(run, options, message):
    status, _, said = run("plan", "--published", *TINY, *options)
    assert status == 2 and message in said and said.count("\n") == 1


def memory(run, *overrides):
    status, said, _ = run("plan", "--published", "--json", "--gpu", "H100", *TINY, *overrides)
    assert status == 0
    return json.loads(said)["stages"]["language_video"]["training"]["memory"]


def test_weights_in_bfloat16_are_planned_with_half_the_memory(run):
    whole, half = memory(run), memory(run, "trainer.precision=bf16-true")
    assert [whole[part] / half[part] for part in ("weights", "gradients", "optimizer")] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 4])
def test_a_stage_that_does_not_fit_fits_with_what_is_advised(run, gpus):
    needs = ["plan", "--published", "--json", "--gpu", "H100", "--gpus", gpus, "experiment=auroralong",
             "stage=language_video", "trainer=gpu"]
    whole = json.loads(run(*needs)[1])["stages"]["language_video"]["training"]["memory"]["total"] / 2**30
    found = []
    for share in (0.9, 0.75, 0.6, 0.4):
        small = ["--gpu-gib", share * whole / 0.95]
        status, said, _ = run(*needs, *small)
        advised = json.loads(said)["stages"]["language_video"]["training"]["fits_with"]
        assert status == 1
        if advised is not None:
            assert advised and run(*needs, *small, *advised)[0] == 0
            # and with less it does not
            assert all(run(*needs, *small, *(other for other in advised if other != one))[0] == 1
                       for one in advised if not one.startswith("data."))
            found.append(advised)
    assert found and (gpus == 1 or len(found) == 4)
    shown = run(*needs[:2], *needs[3:], "--gpu-gib", 0.9 * whole / 0.95)[1]
    assert f"DOES NOT FIT; it fits with {' '.join(found[0])}" in shown


def test_what_no_override_makes_fit_is_told_so(run):
    status, said, _ = run("plan", "--published", "--gpu", "H100", "--gpus", "1", "--gpu-gib", "0.5", *TINY)
    assert status == 1 and "DOES NOT FIT; take more devices with trainer=fsdp" in said


def test_adapters_are_planned_as_what_learns(run):
    shown = memory(run, "stages.language_video.trained=[]",
                  "+stages.language_video.adapters.backbone.lora={rank: 4, alpha: 8}")
    assert 0 < shown["gradients"] < shown["weights"] / 10
