import sys

import pytest
import torch

from aurora.errors import AuroraError
from aurora.registry import DATA, PROMPT, READER
from aurora.types import IGNORE
from datamodules._samples import ShardSample
from datamodules._shards import write_shards

# energon always asks for page-locked memory
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")


@pytest.fixture(scope="module")
def root(make, tmp_path_factory):
    """Folders of this file's own, because energon writes beside the shards."""
    root = tmp_path_factory.mktemp("energon")
    write_shards(make.mixed(40), root / "mixed", samples_per_shard=15)
    write_shards(make.mixed(10, ("text",), 100), root / "text")
    return root


@pytest.fixture
def build(make, root):
    pytest.importorskip("megatron.energon", reason="pip install 'auroralong[energon]'")

    def build(root=root, mixture=None, **options):
        config = {"name": "energon", "root": str(root), "row_tokens": 400, "row_frames": 16, "rows_per_step": 6,
                  "fps": 4.0, "shuffle": 5, **options}
        facts = {"max_steps": config.pop("max_steps", 4), "mixture": mixture or {"mixed": 1, "text": 2}}
        module = DATA.build(config, tokenizer=make.Letters(), prompt=PROMPT.build({"name": "sandwich"}),
                            layout=make.layout(), reader=READER.build({"name": "pyav"}), seed=3, **facts)
        module.prepare_data()
        return module

    return build


def test_rows_keep_to_their_budgets_and_hold_real_samples(make, build):
    rows = list(build().train_dataloader())
    assert [row.closes_step for row in rows] == ([False] * 5 + [True]) * 4
    assert rows[-1].position == (0, 4, 0)
    for row in rows:
        assert len(row.tokens) <= 400 and sum(len(group.pixels) for group in row.frames) in range(1, 17)
        assert len(make.answers(row)) == row.samples > 0 and (row.targets != IGNORE).any()
    found = {answer for row in rows for answer in make.answers(row)}
    assert found == {str(number) for number in (*range(40), *range(100, 110))}


def test_ranks_make_the_same_steps_of_samples_of_their_own(make, build, monkeypatch):
    ranks, first = [], []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        rows = list(build(mixture={"mixed": 1}).train_dataloader())
        ranks.append([(row.closes_step, row.position) for row in rows])
        first.append({answer for row in rows[:2] for answer in make.answers(row)})
    assert ranks[0] == ranks[1] and len(ranks[0]) == 12
    assert not first[0] & first[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_where_it_stopped(build, workers):
    whole, first, again = (build(workers=workers) for _ in range(3))
    first.position = (0, 3, 0)
    again.load_state_dict(first.state_dict())
    wanted, found = list(whole.train_dataloader()), list(again.train_dataloader())
    assert len(found) == 6 and found[-1].position == (0, 4, 0)
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(wanted[18:], found, strict=True))


def test_a_run_does_not_go_on_with_other_workers(build):
    again = build(workers=1)
    again.load_state_dict(build().state_dict())
    with pytest.raises(AuroraError, match="began on 1 ranks with 0 workers each and goes on so alone, not on 1 with 1"):
        again.train_dataloader()


def test_a_folder_is_prepared_once(build, root):
    build()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    build()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_samples_outside_the_format_are_counted_and_named(make, build, tmp_path):
    record = {"conversations": make.talk(7, "<image>\n"), "image": "jpg"}
    long = {"conversations": [{"from": "human", "value": "x" * 999}, {"from": "gpt", "value": "y"}]}
    write_shards([*make.mixed(6), ShardSample("bad", record, {"jpg": b"x"}), ShardSample("long", long)], tmp_path / "d")
    module = build(tmp_path, {"d": 1}, max_bad_rate=1.0, max_steps=1, quarantine=str(tmp_path / "bad.jsonl"))
    list(module.train_dataloader())
    assert set(module.bad.reasons) == {"image", "length"}
    assert '"dataset": "d", "shard": "000000.tar", "key": "bad", "reason": "image"' in (
        tmp_path / "bad.jsonl").read_text()


@pytest.mark.parametrize(("options", "message"), [
    ({"max_steps": None}, "have no end"), ({"rows_per_step": 0}, "rows_per_step"),
    ({"root": "s3://b/x"}, "data=webdataset reads from there"), ({"mixture": {"none": 1}}, "holds no tar"),
])
def test_options_that_make_no_sense_are_refused(build, options, message):
    with pytest.raises(AuroraError, match=message):
        build(**options)


def test_without_the_package_it_is_told_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "datamodules._energon", raising=False)
    for name in ("megatron", "megatron.energon"):
        monkeypatch.setitem(sys.modules, name, None)
    config = {"name": "energon", "root": ".", "row_tokens": 400, "row_frames": 16, "rows_per_step": 6}
    with pytest.raises(AuroraError, match=r"needs the package 'megatron.*pip install 'auroralong\[energon\]'"):
        DATA.build(config, tokenizer=None, prompt=None, layout=None, reader=None, max_steps=1, mixture={"d": 1})
