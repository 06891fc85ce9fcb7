"""Annotations and what they name, where they are not what they should be."""

import json
import os
import re

import pytest

from aurora.registry import EXECUTOR
from datamodules._build import build_tasks, join, run_tasks
from datamodules._build_plan import Order, make_plan
from datamodules._samples import BadSample
from datamodules.source._lines import AnnotationsBroken, entries, fault_of
from datamodules.source._media import find
from datamodules.source._turns import conversation

TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def read(path, raw):
    """The entries of a file, and the error that ended them."""
    path.write_bytes(raw)
    found = []
    try:
        for entry in entries(path, path.name):
            found.append(entry)
    except AnnotationsBroken as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize(("raw", "why"), [
    (b"[" * 50_000, "brackets"),
    (b'[{"id": ' + b"9" * 5000 + b"}]", "overflow"),
    ('[{"id": 1}]'.encode("utf-16"), r"error: invalid char in json text, at byte 0"),
], ids=["depth", "number", "utf-16"])
def test_json_that_its_parser_cannot_take_ends_with_its_reason(tmp_path, raw, why):
    found, error = read(tmp_path / "a.json", raw)
    assert not found
    assert re.match(rf".*a\.json is no whole JSON: [^']*{why}", error)


def test_a_quote_that_is_never_closed_does_not_swallow_the_rows_behind_it(tmp_path):
    found, error = read(tmp_path / "a.csv", b'q,a\n1,2\n"open,3\n4,5\n')
    assert found == [{"q": "1", "a": "2"}]
    assert "a.csv: a quote is not closed" in error


def test_a_cell_that_is_too_long_costs_its_row(tmp_path):
    found, error = read(tmp_path / "a.csv", b"q,a\n" + b"x" * ((1 << 24) + 1) + b",1\n3,4\n")
    assert error is None
    assert "field" in fault_of(found[0])
    assert found[1] == {"q": "3", "a": "4"}


def test_a_pipe_is_no_medium(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadSample, match="no file and no folder"):
        find(tmp_path, ".", "a.jpg")


@pytest.mark.parametrize("speaker", [[], {}, None, 1])
def test_a_speaker_that_is_no_text_is_a_bad_sample(speaker):
    with pytest.raises(BadSample, match="speakers are"):
        conversation([{"from": speaker, "value": "q"}, *TALK])


def test_a_text_that_no_file_can_hold_costs_its_sample(tmp_path):
    rows = [{"id": "broken", "conversations": [{"from": "human", "value": "\ud800"}, TALK[1]]},
            {"id": "whole", "conversations": TALK}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    output.mkdir()
    plan = make_plan(Order(folder=str(tmp_path), source={"name": "llava", "annotations": "a.jsonl"}), output)
    list(run_tasks(build_tasks(output, plan), EXECUTOR.build({"name": "serial"}), entries=2, max_bad_rate=0.5))
    told = join(output, plan)
    assert (told["samples"], told["skipped"]) == (1, {"json": 1})
