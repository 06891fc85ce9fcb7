"""Records of every kind of file, and what is said of those that are none."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aurora.errors import AuroraError
from aurora.records import FAULT, RecordsBroken, entries, items, parse, record_at, records


def read(path, raw):
    """The records of a file, and the error that ended them."""
    path.write_bytes(raw)
    found = []
    try:
        for _, record in records(path):
            found.append(record)
    except RecordsBroken as error:
        return found, str(error)
    return found, None


def test_brackets_without_end_are_refused(tmp_path):
    found, error = read(tmp_path / "a.json", b"[" * 50_000)
    assert not found
    assert "a.json is not whole JSON: it is nested too deeply, at byte 1" in error


@pytest.mark.parametrize("form", ["[{}]", "{}\n", "[{},\n {{\"b\": 3}}]"])
def test_integers_may_have_any_size(tmp_path, form):
    found, error = read(tmp_path / "a.json", form.format('{"id": 13884550019263291874, "n": -170141183460469231731687}')
                        .encode())
    assert (found[0], error) == ({"id": 13884550019263291874, "n": -170141183460469231731687}, None)


@pytest.mark.parametrize("form", ["[{}, {{\"b\": 3}}]", "{}\n{{\"b\": 3}}\n"])
@pytest.mark.parametrize(("record", "why"), [
    ('{"id": ' + "9" * 5000 + "}", "4300 digits"), ('{"a": "\\ud83d"}', "surrogates not allowed"),
    ('{"a": "caf\udce9"}', r"can't decode byte 0xe9 in position \d+"), ('{"id": 1, "id": 2}', "'id' stands twice"),
    ('{"\\udc00": 1}', "surrogates"), ('{"$place": ["../a", 0, 9]}', "reserved"),
    ("3", "not an object"), ('["id"]', "not an object"), ("null", "not an object"),
])
def test_a_record_that_cannot_be_used_costs_no_other(tmp_path, form, record, why):
    found, error = read(tmp_path / "a.json", form.format(record).encode(errors="surrogateescape"))
    if record.startswith("[") and form.startswith("{"):
        pytest.skip("an array is read as one")
    assert error is None
    assert re.search(why, found[0][FAULT])
    assert found[1] == {"b": 3}


def test_a_pair_of_surrogates_is_a_character(tmp_path):
    assert read(tmp_path / "a.json", b'[{"a": "\\ud83d\\ude00"}]')[0] == [{"a": "\U0001f600"}]


@pytest.mark.parametrize(("name", "raw"), [
    ("a.json", b'[{"q": "x"}]'), ("a.json", b'{"q": "x"}'), ("a.jsonl", b'{"q": "x"}\n'), ("a.ndjson", b'[{"q": "x"}]'),
    ("a.csv", b"q\nx\n"), ("a.tsv", b"q\nx\n"),
])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path, name, raw, mark):
    assert read(tmp_path / name, mark + raw) == ([{"q": "x"}], None)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift-jis"])
def test_a_table_in_another_encoding_costs_the_rows_that_show_it(tmp_path, name, encoding):
    text = "日本" if encoding == "shift-jis" else "Größe"
    found, error = read(tmp_path / name, f"q\n{text}\nplain\n".encode(encoding))
    assert error is None
    assert "'utf-8' codec can't decode byte 0x" in found[0][FAULT]
    assert found[1] == {"q": "plain"}


@pytest.mark.parametrize("raw", ["Größe,b\n1,2\n".encode("cp1252"), "q,a\n1,2\n".encode("utf-16")])
def test_a_table_whose_head_is_not_utf_8_is_refused_as_a_whole(tmp_path, raw):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(AuroraError, match=r"a\.csv, line 1: .*byte 0x.*UTF-8"):
        list(records(tmp_path / "a.csv"))


def test_a_row_of_parquet_that_is_not_utf_8_costs_no_other(tmp_path):
    raw = pa.array([b"caf\xe9", b"plain"]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"q": texts}), tmp_path / "a.parquet")
    (_, first), second = records(tmp_path / "a.parquet")
    assert "can't decode byte 0xe9" in first[FAULT]
    assert second == ("row 2", {"q": "plain"})


def test_what_is_wrong_is_said_with_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{"a": }\n')
    assert list(entries(tmp_path / "a.jsonl", "below/a.jsonl"))[1][FAULT].startswith("below/a.jsonl, line 3: ")


def test_a_record_is_found_again_by_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"a": "ö"}\n\n{"a": "b"}\n'.encode())
    places = [one["$place"] for one in entries(tmp_path / "a.jsonl", "a.jsonl", by_place=True)]
    assert [record_at(tmp_path, place) for place in places] == [{"a": "ö"}, {"a": "b"}]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_arrays_of_an_object_are_read_in_blocks_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr("aurora.records._BLOCK", size)
    text = json.dumps({"info": {"list": [1, 2]}, "number": 12345, "a": [{"x": "ö" * 50, "n": n} for n in range(40)],
                       "b": [{"y": [n, {}]} for n in range(40)], "empty": []}, ensure_ascii=False)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert list(items(tmp_path / "a.json", "b")) == [{"y": [n, {}]} for n in range(40)]
    assert list(items(tmp_path / "a.json", "a")) == [{"x": "ö" * 50, "n": n} for n in range(40)]
    assert list(items(tmp_path / "a.json", "empty")) == []


@pytest.mark.parametrize(("raw", "byte"), [('[{"a": "ö"}, {oh]', 15), ('[{"a": "ö"}', 12), ('[{"a": "ö"}] []', 14),
                                           ('\ufeff[{"a": "ö"}, no]', 17)])
def test_where_a_file_breaks_is_counted_in_bytes(tmp_path, raw, byte):
    found, error = read(tmp_path / "a.json", raw.encode())
    assert found == [{"a": "ö"}]
    assert f"at byte {byte} after entry 1" in error


def test_a_quote_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("aurora.records._BLOCK", 16)
    monkeypatch.setattr("aurora.records._LARGEST", 64)
    found, error = read(tmp_path / "a.json", b'[{"a": 1}, {"b": "' + b"x" * 10_000 + b'"}]')
    assert found == [{"a": 1}]
    assert "Unterminated string" in error


def test_parse_names_what_is_wrong():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(b"[" * 100_000)


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
        list(records(tmp_path / name))


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
    with pytest.raises(AuroraError, match=rf"{name} is one JSON object over several lines; records are a list"):
        list(entries(tmp_path / name, name, by_place=by_place))


def test_a_list_that_is_called_lines_is_read_as_what_it_is(tmp_path):
    assert read(tmp_path / "a.jsonl", json.dumps([{"id": 1}], indent=1).encode()) == ([{"id": 1}], None)


@pytest.mark.parametrize("first", ['{"id": "no end', '{"id": no}', '{"id": 1'])
def test_a_first_line_that_is_broken_costs_its_record(tmp_path, first):
    found, error = read(tmp_path / "a.jsonl", f'{first}\n{{"id": 2}}\n'.encode())
    assert error is None
    assert found[0][FAULT]
    assert found[1] == {"id": 2}
