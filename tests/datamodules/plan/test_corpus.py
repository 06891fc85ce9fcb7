import pickle

import numpy as np
import pytest

from aurora.errors import AuroraError
from datamodules.plan import corpus
from tools.tiny_shards import write_shards


def test_a_corpus_is_measured_once_and_mapped_from_then_on(make, shards, monkeypatch):

    first = make.module(shards, {"mixed": 1, "text": 2}).corpus
    monkeypatch.setattr(corpus, "_fill", None)
    again = make.module(shards, {"mixed": 1, "text": 2}).corpus
    assert isinstance(again.tokens, np.memmap) and again.identity == first.identity
    assert again.tokens.tolist() == first.tokens.tolist() and again.counts == first.counts


def test_a_copy_in_another_process_maps_the_same_files(make, shards):
    corpus = make.module(shards, {"mixed": 1, "text": 2}).corpus
    raw = pickle.dumps(corpus)
    copy = pickle.loads(raw)
    assert len(raw) < 2000 and isinstance(copy.tokens, np.memmap) and copy.locate(41)[0].folder.name == "text"
    assert [(one.samples.tolist(), one.repeats) for one in copy.members] == [
        (one.samples.tolist(), one.repeats) for one in corpus.members]


@pytest.mark.parametrize("change", [
    {"fps": 1.0}, {"row_tokens": 399}, {"too_long": "drop"}, {"prompt": "generic"},
    {"layout": {"resize": "keep_aspect"}},
])
def test_whatever_changes_a_length_changes_the_identity(make, shards, change):
    if "layout" in change:
        change = {"layout": make.layout(**change["layout"])}
    first, other = make.module(shards, {"mixed": 1}), make.module(shards, {"mixed": 1}, **change)
    assert first.corpus.identity != other.corpus.identity


def test_other_shards_under_the_same_name_are_measured_anew(make, tmp_path):
    write_shards(make.mixed(4), tmp_path / "d")
    first = make.module(tmp_path, {"d": 1}).corpus
    write_shards(make.mixed(5), tmp_path / "d")
    assert (len(first.tokens), len(make.module(tmp_path, {"d": 1}).corpus.tokens)) == (4, 5)


def test_measuring_in_blocks_gives_the_same(make, shards, tmp_path, monkeypatch):

    whole = make.module(shards, {"mixed": 1}).corpus
    monkeypatch.setattr(corpus, "_BLOCK", 7)
    monkeypatch.setattr(corpus, "FOLDER", ".elsewhere")
    blocks = make.module(shards, {"mixed": 1}).corpus
    for name in ("tokens", "text", "frames", "kinds"):
        assert getattr(blocks, name).tolist() == getattr(whole, name).tolist()


def test_only_so_many_samples_are_planned_as_are_taken(make, shards):
    module = make.module(shards, {"mixed": {"samples": 10, "repeats": 2}, "text": 1})
    read = np.concatenate([np.repeat(one.samples, one.repeats) for one in module.corpus.members])
    assert module.plan.samples == len(read) == 30 and len(set(read.tolist())) == 20


def test_missing_folders_are_all_named(make, shards):
    with pytest.raises(AuroraError, match="no dataset folder nowhere, gone below"):
        make.module(shards, {"mixed": 1, "nowhere": 1, "gone": 2}).setup()


def test_missing_folders_are_left_out_where_they_may_be(make, shards):
    module = make.module(shards, {"gone": 3, "text": 2}, missing="drop")
    assert [index.folder.name for index in module.corpus.datasets] == ["text"] and module.plan.samples == 20


def test_a_mixture_of_which_nothing_is_there_is_refused_even_then(make, shards):
    with pytest.raises(AuroraError, match="no dataset folder gone"):
        make.module(shards, {"gone": 3}, missing="drop").setup()


def test_a_step_of_fewer_tokens_than_a_row_is_refused(make, shards):
    with pytest.raises(AuroraError, match="a step of 12 tokens is less than a row of 400"):
        make.module(shards, {"mixed": 1}, batch_unit="tokens")
