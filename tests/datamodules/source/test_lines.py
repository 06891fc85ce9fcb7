"""Annotations and what they name, where they are not what they should be."""

import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aurora.errors import AuroraError, BadSample
from aurora.registry import EXECUTOR
from datamodules.build.build import build_tasks, join, run_tasks
from datamodules.build.plan import BuildOrder, make_plan
from datamodules.source._lines import FAULT, AnnotationsBroken, entries
from datamodules.source._media import find
from datamodules.source._records import conversation

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
    assert re.match(rf".*a\.json is not whole JSON: [^']*{why}", error)


def test_a_quote_that_is_never_closed_does_not_swallow_the_rows_behind_it(tmp_path):
    found, error = read(tmp_path / "a.csv", b'q,a\n1,2\n"open,3\n4,5\n')
    assert found == [{"q": "1", "a": "2"}]
    assert "a.csv: a quote is not closed" in error


def test_a_cell_that_is_too_long_costs_its_row(tmp_path):
    found, error = read(tmp_path / "a.csv", b"q,a\n" + b"x" * ((1 << 24) + 1) + b",1\n3,4\n")
    assert error is None
    assert "field" in found[0][FAULT]
    assert found[1] == {"q": "3", "a": "4"}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path, name):
    columns = ["q", "a", "q"]
    if name == "a.parquet":
        pq.write_table(pa.table([pa.array(["x"])] * 3, names=columns), tmp_path / name)
    else:
        cells = (",", "\t")[name == "a.tsv"]
        (tmp_path / name).write_text(f"{cells.join(columns)}\n{cells.join('xyz')}\n")
    with pytest.raises(AuroraError, match=rf"{name} has several columns of the name 'q'"):
        list(entries(tmp_path / name, name))


def test_columns_without_a_name_may_be_several(tmp_path):
    found, error = read(tmp_path / "a.csv", b"q,a,,\n1,2,,\n")
    assert error is None
    assert (found[0]["q"], found[0]["a"]) == ("1", "2")


@pytest.mark.parametrize("record", ['{"id": 1, "id": 2}', '{"id": 1, "talk": [{"id": 1, "id": 1}]}'])
@pytest.mark.parametrize("form", ["{}\n{{\"b\": 3}}\n", "[{}, {{\"b\": 3}}]"], ids=["lines", "list"])
def test_an_object_with_a_key_twice_is_a_bad_record(tmp_path, record, form):
    found, error = read(tmp_path / "a.json", form.format(record).encode())
    assert error is None
    assert "the key 'id' stands twice in one object" in found[0][FAULT]
    assert found[1] == {"b": 3}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("by_place", [False, True])
def test_one_object_over_several_lines_is_told_as_what_it_is(tmp_path, name, by_place):
    (tmp_path / name).write_text("\n" + json.dumps({"images": [{"id": 1}], "annotations": []}, indent=1))
    with pytest.raises(AuroraError, match=rf"{name} is one JSON object over several lines; annotations are a list"):
        list(entries(tmp_path / name, name, by_place=by_place))


def test_a_list_that_is_called_lines_is_told_as_what_it_is(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps([{"id": 1}], indent=1))
    with pytest.raises(AuroraError, match=r"a\.jsonl is a JSON list, not lines of JSON; name it \.json"):
        list(entries(tmp_path / "a.jsonl", "a.jsonl"))


@pytest.mark.parametrize("first", ['{"id": "no end', '{"id": no}', '{"id": 1'])
def test_a_first_line_that_is_broken_costs_its_record(tmp_path, first):
    found, error = read(tmp_path / "a.jsonl", f'{first}\n{{"id": 2}}\n'.encode())
    assert error is None
    assert found[0][FAULT].startswith("line 1: ")
    assert found[1] == {"id": 2}


def test_a_pipe_is_no_medium(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadSample, match="neither a file nor a folder"):
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
    plan = make_plan(BuildOrder(folder=str(tmp_path), source={"name": "llava", "annotations": "a.jsonl"}), output)
    list(run_tasks(build_tasks(output, plan), EXECUTOR.build({"name": "serial"}), entries=2, max_bad_rate=0.5))
    reported = join(output, plan)
    assert (reported["samples"], reported["skipped"]) == (1, {"json": 1})
