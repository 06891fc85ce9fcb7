from itertools import chain

import pytest
import torch

from aurora.errors import AuroraError
from aurora.registry import DATA, PROMPT, READER
from aurora.types import IGNORE
from datamodules import streaming
from datamodules.shards.format import ShardSample
from datamodules.shards.writing import shard_path
from tools.tiny_shards import write_shards


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(streaming, "start_method", lambda: "fork")
    monkeypatch.setattr(streaming, "_WAITING", 6)


@pytest.fixture
def build(make, shards):
    def build(root=shards, mixture=None, **options):
        config = {"name": "streaming", "root": str(root), "row_tokens": 400, "row_frames": 16, "rows_per_step": 6,
                  "fps": 4.0, "shuffle": 5, **options}
        facts = {"max_steps": config.pop("max_steps", 4), "mixture": mixture or {"mixed": 1, "text": 2}}
        facts.setdefault("layout", config.pop("layout", make.layout()))
        return DATA.build(config, tokenizer=make.Letters(), prompt=PROMPT.build({"name": "sandwich"}),
                          reader=READER.build({"name": "pyav"}), seed=3, **facts)

    return build


def test_rows_keep_to_their_budgets_and_hold_real_samples(make, build):
    rows = list(chain.from_iterable(build().train_dataloader()))
    assert [row.closes_step for row in rows] == ([False] * 5 + [True]) * 4
    assert [rows[-7].position, rows[-1].position] == [(0, 3, 0), (1, 0, 0)]
    known = {str(number) for number in (*range(40), *range(100, 110))}
    for row in rows:
        assert len(row.tokens) <= 400 and sum(len(group.pixels) for group in row.frames) in range(1, 17)
        assert set(make.answers(row)) <= known and len(make.answers(row)) == row.samples > 0
        assert (row.targets != IGNORE).any()
    assert len({answer for row in rows for answer in make.answers(row)}) > 15


@pytest.mark.slow
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (3, 2)])
def test_all_ranks_make_the_same_steps_however_few_the_shards(build, monkeypatch, world, workers):
    ranks = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        rows = chain.from_iterable(build(mixture={"text": 1}, workers=workers).train_dataloader())
        ranks.append([(row.closes_step, row.position) for row in rows])
    assert all(rank == ranks[0] for rank in ranks) and len(ranks[0]) == 4 * 6 // world


def test_a_resumed_run_makes_the_steps_that_are_left_and_draws_anew(build):
    first, again = build(), build()
    rows = list(chain.from_iterable(first.train_dataloader()))
    rest = list(again.rows((0, 3, 0), steps=1, rank=0, world=1))
    assert len(rest) == 6 and rest[-1].position == (1, 0, 0)
    assert not any(torch.equal(one.tokens, other.tokens) for one, other in zip(rows, rest, strict=False))


def test_samples_outside_the_format_are_counted_and_named(make, build, tmp_path):
    record = {"conversations": make.talk(7, "<image>\n"), "image": "jpg"}
    long = {"conversations": [{"from": "human", "value": "x" * 999}, {"from": "gpt", "value": "y"}]}
    write_shards([*make.mixed(6), ShardSample("bad", record, {"jpg": b"x"}), ShardSample("long", long)], tmp_path / "d")
    module = build(tmp_path, {"d": 1}, max_bad_rate=1.0)
    list(chain.from_iterable(module.train_dataloader()))
    assert set(module.bad.reasons) == {"image", "length"}
    with pytest.raises(AuroraError, match="samples are bad"):
        list(chain.from_iterable(build(tmp_path, {"d": 1}, max_bad_rate=0.1, bad_rate_after=10).train_dataloader()))


def test_a_tar_that_was_cut_does_not_end_the_run(make, build, tmp_path):
    write_shards(make.mixed(8), tmp_path / "d", samples_per_shard=4)
    tar = shard_path(tmp_path / "d", 1)
    tar.write_bytes(tar.read_bytes()[:2000])
    module = build(tmp_path, {"d": 1}, max_bad_rate=1.0)
    assert len(list(chain.from_iterable(module.train_dataloader()))) == 24


@pytest.mark.parametrize(("options", "message"), [
    ({"max_steps": None}, "its rows have no end"), ({"rows_per_step": 0}, "rows_per_step"),
    ({"root": "s3://b/x"}, "data=webdataset reads from there"),
    ({"mixture": {"mixed": {"weight": 1.0}}}, "has more options"),
    ({"mixture": {"none": 1}}, "holds no tar"),
])
def test_options_that_make_no_sense_are_refused(build, options, message):
    if "weight" in str(options):
        options["mixture"] = {"datasets": options["mixture"], "visits": 10}
    with pytest.raises(AuroraError, match=message):
        build(**options)


def test_rows_that_do_not_divide_by_the_ranks_are_refused(build, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(AuroraError, match="rows_per_step 6 does not divide by 4 ranks"):
        next(chain.from_iterable(build().train_dataloader()))


def test_frames_stand_behind_their_timestamps(make, build):
    module = build(layout=make.stamped(make.layout()), mixture={"mixed": 1}, max_bad_rate=0.0)
    rows = list(chain.from_iterable(module.train_dataloader()))
    assert {stamp for row in rows for stamp in make.timestamps(row)} == {"0:00:00"}
    assert all(len(row.tokens) <= 400 for row in rows)
