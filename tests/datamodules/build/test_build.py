"""Building shards for real: small datasets, real processes, real kills, a disk that is really full."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.registry import EXECUTOR, PROMPT, SOURCE, TOKENIZER
from datamodules.build.build import (
    BuildTask,
    TextCounter,
    build_tasks,
    clear,
    join,
    retry_skipped,
    run_tasks,
    write_task,
)
from datamodules.build.catalogue import known_datasets, load_dataset
from datamodules.build.media import Transcode
from datamodules.build.plan import BuildOrder, load_plan, make_plan, read_task
from datamodules.plan.lengths import counter, joined_path, text_lengths
from datamodules.shards.index import load_index
from datamodules.shards.tar import ShardFiles
from tools.tiny_shards import write_shards

KILLS = int(os.environ.get("AURORA_BUILD_KILLS", "5"))


@pytest.fixture
def dataset(make, tmp_path):
    """A function that makes INPUT: `count` pictures with a question each; those in `missing` have no file."""

    def dataset(count=20, *, missing=(), extra=""):
        folder = tmp_path / "input"
        folder.mkdir(exist_ok=True)
        rows = []
        for number in range(count):
            if number not in missing:
                (folder / f"{number}.jpg").write_bytes(make.picture(number, 40 + number % 3, 60))
            rows.append({"id": f"id-{number}", "image": f"{number}.jpg",
                         "conversations": make.talk(number, "<image>\n")})
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + extra)
        return folder

    return dataset


def order(folder, **options):
    return BuildOrder(folder=str(folder), source={"name": "llava", "annotations": "a.jsonl"},
                 **{"samples_per_shard": 4, **options})


def build(order, output, *, executor="serial", max_bad_rate=0.05, count=None, **options):
    output.mkdir(exist_ok=True, parents=True)
    plan = make_plan(order, output)
    tasks = build_tasks(output, plan, count)
    rows = run_tasks(tasks, EXECUTOR.build({"name": executor, **options}), entries=plan.entries,
                     max_bad_rate=max_bad_rate)
    list(rows)
    return join(output, plan, count)


def files(folder):
    """Everything that a build gives, its own notes left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_entry_becomes_a_sample_in_order(make, dataset, tmp_path):
    reported = build(order(dataset(10)), tmp_path / "out")
    index = load_index(tmp_path / "out")
    reading = ShardFiles()
    assert [shard["samples"] for shard in index.shards] == [4, 4, 2]
    for number in range(10):
        key, raw = reading.record(index, number)
        assert (key, json.loads(raw)["id"]) == (f"{number:09d}", f"id-{number}")
        assert reading.media(index, number, 0, f"{key}.jpg") == make.picture(number, 40 + number % 3, 60)
    assert make.wrong(tmp_path / "out") == []
    assert (reported["samples"], reported["kinds"]["image"], reported["skipped"]) == (10, 10, {})


def test_the_same_input_gives_the_same_bytes_from_every_executor(dataset, tmp_path):
    folder = dataset()
    build(order(folder), tmp_path / "serial")
    build(order(folder), tmp_path / "process", executor="process", workers=2)
    assert files(tmp_path / "serial") == files(tmp_path / "process")


@pytest.mark.process
@pytest.mark.slow
def test_ray_gives_the_same_bytes(dataset, tmp_path):
    pytest.importorskip("ray")
    folder = dataset(8)
    build(order(folder), tmp_path / "serial")
    # a process of its own: Ray leaves sockets open that would be warned about
    code = ("import sys\nfrom aurora.cli import main\n"
            "sys.exit(main(['shards', 'build', 'llava', *sys.argv[1:], 'source.annotations=a.jsonl', "
            "'--samples-per-shard', '4', '--executor', 'ray', 'executor.cpus=0.5']))")
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "ray")], timeout=120,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left, right = files(tmp_path / "serial"), files(tmp_path / "ray")
    # the command line says all options of the source, the other only those that it was given
    for reported in (left, right):
        del reported["dataset.json"]
    assert left == right


def test_what_is_done_is_not_done_again(dataset, tmp_path):
    folder = dataset()
    build(order(folder), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    tmp_path.joinpath("000002.manifest.json").unlink()
    build(order(folder), tmp_path)
    written = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert written == ["000002.tar"]


WRITER = """
import pathlib, sys
from datamodules.build.build import build_tasks, write_task
from datamodules.build.plan import load_plan

out = pathlib.Path(sys.argv[1])
for task in build_tasks(out, load_plan(out)):
    write_task(task)
sys.stdin.read()
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_build_that_is_killed_again_and_again_gives_the_same_shards(dataset, tmp_path):
    """AURORA_BUILD_KILLS=20 for more kills."""
    asked, whole, out = order(dataset(120), samples_per_shard=2), tmp_path / "whole", tmp_path / "killed"
    build(asked, whole)
    out.mkdir()
    plan = make_plan(asked, out)
    rng, cut = random.Random(0), []
    for least in sorted(rng.sample(range(1, plan.tasks - 5), KILLS)):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdin=subprocess.PIPE) as process:
            while len(list(out.glob("*.manifest.json"))) < least:
                assert process.poll() is None
                time.sleep(rng.uniform(0, 0.003))
            process.send_signal(signal.SIGKILL)
        cut.append(sum(task.result() is not None for task in build_tasks(out, plan)))
    assert cut[0] < plan.tasks
    list(run_tasks(build_tasks(out, plan), EXECUTOR.build({"name": "serial"}), entries=plan.entries, max_bad_rate=0))
    join(out, plan)
    assert files(out) == files(whole)


def test_a_plan_that_was_cut_off_is_made_again(dataset, tmp_path):
    folder = dataset(6)
    (tmp_path / "out" / ".build").mkdir(parents=True)
    (tmp_path / "out" / ".build" / "000000.jsonl").write_text("[0, {")
    assert build(order(folder), tmp_path / "out")["samples"] == 6


@pytest.mark.parametrize("change", ["annotations", "options", "transcode"])
def test_shards_of_something_else_are_not_continued(dataset, tmp_path, change):
    folder, out = dataset(6), tmp_path / "out"
    build(order(folder), out)
    if change == "annotations":
        dataset(7)
    other = {"options": {"samples_per_shard": 3}, "transcode": {"transcode": Transcode()}}.get(change, {})
    with pytest.raises(AuroraError, match=f"begun from something else: {change if other else 'annotations'}"
                       if change != "options" else "samples_per_shard was 4, is 3"):
        build(order(folder, **other), out)
    clear(out)
    assert build(order(folder, **other), out)["samples"] == (7 if change == "annotations" else 6)


def test_a_dataset_may_be_described_better_between_two_runs(dataset, tmp_path):
    folder = dataset(3)
    build(order(folder, about={"licence": "?"}), tmp_path)
    assert build(order(folder, about={"licence": "CC0"}), tmp_path)["licence"] == "CC0"


def test_shards_that_others_wrote_are_left_alone(make, dataset, tmp_path):
    from tools.tiny_shards import write_shards

    write_shards(make.mixed(2), tmp_path / "out")
    with pytest.raises(AuroraError, match="holds shards that were not built here"):
        build(order(dataset(2)), tmp_path / "out")


def test_entries_that_cannot_be_used_are_left_out_listed_and_counted(dataset, tmp_path):
    folder = dataset(10, missing=(3,), extra='{"id": "x", "conversations": 3}\nno json\n')
    (folder / "5.jpg").write_bytes((folder / "5.jpg").read_bytes()[:20])
    reported = build(order(folder), tmp_path / "out", max_bad_rate=0.5)
    assert (reported["samples"], reported["entries"]) == (8, 12)
    assert reported["skipped"] == {"missing": 1, "image": 1, "turns": 1, "json": 1}
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(one["shard"], one["entry"], one["id"], one["reason"]) for one in listed] == [
        (0, 3, "id-3", "missing"), (1, 5, "id-5", "image"), (2, 10, "x", "turns"), (2, 11, None, "json")]


def test_too_many_bad_entries_end_the_build_and_what_was_written_stays(make, dataset, tmp_path):
    folder, out = dataset(12, missing=(5, 6)), tmp_path / "out"
    with pytest.raises(AuroraError, match=r"2 of 12 entries cannot be used \(2 missing\), more than .* 0\.1"):
        build(order(folder), out, max_bad_rate=0.1)
    assert len((out / "skipped.jsonl").read_text().splitlines()) == 2
    tasks = build_tasks(out, load_plan(out))
    assert [task.result() is not None for task in tasks] == [True, True, False]
    for number in (5, 6):
        (folder / f"{number}.jpg").write_bytes(make.picture(number, 40 + number % 3, 60))
    assert retry_skipped(tasks) == 1
    assert build(order(folder), out)["samples"] == 12
    build(order(folder), tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_annotations_that_break_off_are_built_up_to_there(dataset, tmp_path, capsys):
    folder = dataset(6)
    rows = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    (folder / "a.json").write_text(json.dumps(rows)[:-1] + ", oh")
    arguments = ["shards", "build", "llava", str(folder), str(tmp_path / "out"), "source.annotations=a.json"]
    assert main([*arguments, "--executor", "serial"]) == 2
    assert "after entry 6" in capsys.readouterr().err
    assert len(load_index(tmp_path / "out")) == 6


def test_annotations_without_an_entry_are_refused(dataset, tmp_path):
    with pytest.raises(AuroraError, match="hold no entry"):
        build(order(dataset(0)), tmp_path / "out")


def test_shards_end_with_the_entry_that_takes_them_past_their_bytes(dataset, tmp_path):
    folder = dataset(8)
    size = (folder / "0.jpg").stat().st_size
    build(order(folder, samples_per_shard=100, shard_bytes=2 * size), tmp_path / "out")
    assert [shard["samples"] for shard in load_index(tmp_path / "out").shards][:2] == [3, 3]


def test_a_task_reads_nothing_of_the_others(dataset, tmp_path):
    make_plan(order(dataset(10)), tmp_path)
    assert [number for number, _ in read_task(tmp_path, 1)] == [4, 5, 6, 7]
    with pytest.raises(AuroraError, match="has no task 3"):
        write_task(BuildTask(tmp_path, 3))


def test_a_task_outside_the_plan_touches_nothing(make, dataset, tmp_path):
    write_shards(make.mixed(1), tmp_path / "others")
    before = files(tmp_path / "others")
    with pytest.raises(AuroraError, match="holds no plan"):
        write_task(BuildTask(tmp_path / "others", 0))
    assert files(tmp_path / "others") == before
    make_plan(order(dataset(4)), tmp_path)
    with pytest.raises(AuroraError, match=r"no task 1; they are 0 to 0"):
        write_task(BuildTask(tmp_path, 1))
    assert not list(tmp_path.glob("*.tmp"))


def test_half_a_picture_costs_its_entry(dataset, tmp_path):
    folder = dataset(4)
    picture = folder / "2.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    reported = build(order(folder), tmp_path / "out", max_bad_rate=0.5)
    assert (reported["samples"], reported["skipped"]) == (3, {"image": 1})


def test_joining_before_all_is_written_names_what_lacks(dataset, tmp_path):
    plan = make_plan(order(dataset(10)), tmp_path)
    write_task(BuildTask(tmp_path, 0))
    with pytest.raises(AuroraError, match="2 shards are not built yet, the first is 000001"):
        join(tmp_path, plan)


def test_texts_counted_while_building_are_those_that_training_counts(dataset, tmp_path):
    parts = {"name": "bytes"}, {"name": "sandwich"}
    build(order(dataset(10)), tmp_path, count=TextCounter(*parts))
    index, tokenizer, prompt = load_index(tmp_path), TOKENIZER.build(parts[0]), PROMPT.build(parts[1])
    path = joined_path(index, counter(prompt, tokenizer))
    counted = np.load(path)
    for kept in [path, *tmp_path.glob("*.lengths-*")]:
        kept.unlink()
    np.testing.assert_array_equal(counted, text_lengths(index, prompt, tokenizer))


def test_a_full_disk_says_so_and_a_later_run_goes_on(dataset, small_disk):
    folder = dataset(200)
    with pytest.raises(AuroraError, match=r"00000\d\.tar: no room left on the disk.*make room and run again"):
        build(order(folder, samples_per_shard=40), small_disk / "out")
    assert not list((small_disk / "out").glob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True, capture_output=True)
    assert build(order(folder, samples_per_shard=40), small_disk / "out")["samples"] == 200


# ---- the command line ------------------------------------------------------------------------------------------


def test_a_build_on_the_command_line_says_what_it_made(dataset, tmp_path, capsys):
    folder = dataset(10, missing=(1,))
    status = main(["shards", "build", "llava", str(folder), str(tmp_path / "out"), "--max-bad-rate", "0.2",
                   "source.annotations=[a.jsonl]", "--executor", "serial", "--count", "bytes", "sandwich"])
    shown = capsys.readouterr().out
    assert status == 0 and "9 samples (9 image) in 1 shards" in shown and 'skipped {"missing": 1}' in shown
    assert list((tmp_path / "out").glob("lengths-*.npy"))


def test_a_dataset_of_a_catalogue_brings_its_source_and_its_licence(dataset, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nhomepage: https://example.org\nlicence: CC0\nsamples: 3\nkinds: [image]\nbytes: null\n"
        "layout: pictures\nsource: {name: llava, annotations: [a.jsonl]}\n")
    assert main(["shards", "build", str(tmp_path / "mine.yaml"), str(dataset(3)), str(tmp_path / "out"), "--executor",
                 "serial"]) == 0
    reported = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (reported["name"], reported["licence"], reported["source"]["name"]) == ("mine", "CC0", "llava")


@pytest.mark.parametrize("name", known_datasets())
def test_every_dataset_of_the_catalogue_says_what_its_source_asks_for(name):
    options = dict(load_dataset(name).source)
    known = SOURCE.options(options.pop("name"))
    required = {key for key, option in known.items() if option.default is option.empty} - {"folder"}
    assert required <= set(options) <= set(known) - {"folder"}


@pytest.mark.parametrize(("arguments", "reported"), [
    (["lava", "{input}"], "no dataset and no source named 'lava'"),
    (["llava", "{input}"], "needs the option(s) annotations"),
    (["llava", "{input}", "source.annotation=a.jsonl"], "has no option 'annotation'"),
    (["llava", "{input}/nowhere"], "is not a folder"),
    (["llava", "{input}", "annotations=a.jsonl"], "is not an override of a build"),
    (["llava", "{input}", "source.annotations=a.jsonl", "--executor", "prcess"], "no executor named 'prcess'"),
    (["llava", "{input}", "source.annotations=a.jsonl", "--transcode", "--fps", "0"], "fps 0.0"),
    (["llava", "{input}", "source.annotations=a.jsonl", "--samples-per-shard", "0"], "must be 1 or more"),
    (["llava", "{input}", "source.annotations=a.jsonl", "--max-bad-rate", "2"], "less than or equal to 1"),
])
def test_what_cannot_be_built_is_said(dataset, tmp_path, capsys, arguments, reported):
    source, folder, *rest = (word.format(input=dataset(1)) for word in arguments)
    assert main(["shards", "build", source, folder, str(tmp_path / "out"), *rest]) == 2
    assert reported in capsys.readouterr().err
