"""Every source on small copies of the layouts that datasets are published in."""

import base64
import csv
import json
import os
import re
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aurora.errors import AuroraError, BadSample
from aurora.interfaces import Turn
from aurora.registry import EXECUTOR, SOURCE
from datamodules.build.build import build_tasks, join, run_tasks
from datamodules.build.plan import BuildOrder, make_plan
from datamodules.shards.format import parse_record
from datamodules.shards.index import load_index
from datamodules.shards.tar import ShardFiles
from datamodules.source._records import conversation, find
from datamodules.source.table import seconds


@pytest.fixture
def folder(make, tmp_path):
    """A dataset's folder with img/0.jpg … 3.jpg, one picture under a wrong name, and vid/a.mp4."""
    (tmp_path / "img").mkdir()
    (tmp_path / "vid").mkdir()
    for number in range(4):
        (tmp_path / "img" / f"{number}.jpg").write_bytes(make.picture(number))
    (tmp_path / "img" / "png.jpg").write_bytes(make.picture(0, form="PNG"))
    (tmp_path / "vid" / "a.mp4").write_bytes(make.video(4))
    return tmp_path


def source(folder, name, **options):
    return SOURCE.build({"name": name, **options}, folder=folder)


def samples(folder, name, **options):
    """The samples of a source, or the reasons why there is none."""
    built, shown = source(folder, name, **options), []
    for number, entry in enumerate(built.entries()):
        # an entry is written down and read back between the plan and the work
        entry = json.loads(json.dumps(entry))
        try:
            shown.append(built.sample(entry, f"{number:09d}"))
        except BadSample as error:
            shown.append(error.reason)
    return shown


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def talk(*values):
    return [{"from": ("human", "gpt")[at % 2], "value": value} for at, value in enumerate(values)]


def said(sample):
    return [turn["value"] for turn in sample.record["conversations"]]


def parquet(path, rows, size=2):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=size)


# ---- what is wrong ---------------------------------------------------------------------------------------------


def test_a_pipe_is_no_medium(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadSample, match="neither a file nor a folder"):
        find(tmp_path, ".", "a.jpg")


@pytest.mark.parametrize("speaker", [[], {}, None, 1])
def test_a_speaker_that_is_no_text_is_a_bad_sample(speaker):
    with pytest.raises(BadSample, match="speakers are"):
        conversation([{"from": speaker, "value": "q"}, *talk("q", "a")])


def test_a_text_that_no_file_can_hold_costs_its_sample(tmp_path):
    rows = [{"id": "broken", "conversations": [{"from": "human", "value": "\ud800"}, talk("q", "a")[1]]},
            {"id": "whole", "conversations": talk("q", "a")}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    output.mkdir()
    plan = make_plan(BuildOrder(folder=str(tmp_path), source={"name": "llava", "annotations": "a.jsonl"}), output)
    list(run_tasks(build_tasks(output, plan), EXECUTOR.build({"name": "serial"}), entries=2, max_bad_rate=0.5))
    reported = join(output, plan)
    assert (reported["samples"], reported["skipped"]) == (1, {"json": 1})


CASES = Path(__file__).parent / "cases"


def case(tmp_path, name, source="llava", option="annotations", **options):
    """What is built of a small file: (the samples' conversations, the reasons why others were skipped)."""
    plan = make_plan(BuildOrder(folder=str(CASES), source={"name": source, option: name, **options}), tmp_path)
    list(run_tasks(build_tasks(tmp_path, plan), EXECUTOR.build({"name": "serial"}), entries=9, max_bad_rate=1.0))
    join(tmp_path, plan)
    index, files = load_index(tmp_path), ShardFiles()
    built = [json.loads(files.record(index, number)[1]) for number in range(len(index))]
    return built, [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]


def test_integers_beyond_64_bits_are_read_from_an_array(tmp_path):
    built, skipped = case(tmp_path, "unsigned_64_bit_id.json")
    assert ([one["id"] for one in built], skipped) == (["1", "13884550019263291874", "2"], [])


def test_a_misspelt_field_does_not_turn_a_picture_into_text(tmp_path):
    built, skipped = case(tmp_path, "misspelt_field.json")
    assert not built
    assert {one["reason"] for one in skipped} == {"field"}
    assert "'img' looks like media (a.jpg)" in skipped[0]["detail"]


def test_a_marker_without_an_image_is_a_bad_sample_and_a_literal_tag_stays(tmp_path):
    built, skipped = case(tmp_path, "markers.json")
    assert [one["id"] for one in built] == ["tag_in_text"]
    assert [(one["id"], one["reason"]) for one in skipped] == [("marker_without_image", "markers")]


def test_what_stops_a_build_is_said_with_its_first_reason(tmp_path):
    plan = make_plan(BuildOrder(folder=str(CASES), source={"name": "llava", "annotations": "misspelt_field.json"}),
                     tmp_path)
    with pytest.raises(AuroraError, match=r"\(3 field\).*the first: 'img' looks like media \(a\.jpg\)"):
        list(run_tasks(build_tasks(tmp_path, plan), EXECUTOR.build({"name": "serial"}), entries=3, max_bad_rate=0.1))


def test_cp1252_is_refused_with_file_line_and_byte(tmp_path):
    built, skipped = case(tmp_path, "cp1252.csv", "table", "files", question="question", answer="answer", image="file")
    assert not built
    assert re.search(r"cp1252\.csv, line 2: .*byte 0xdf", skipped[0]["detail"])


@pytest.mark.parametrize("field", ["img", "Image", "imgae", "vidoe", "picture_path", "source"])
@pytest.mark.parametrize("value", ["img/0.jpg", ["img/0.jpg"], {"path": "img/0.JPG"}, "data:image/png;base64,AAAA"])
def test_a_field_that_looks_like_media_is_not_passed_over(folder, field, value):
    lines(folder / "a.jsonl", [{"id": "x.jpg", field: value, "conversations": talk("a", "b")}])
    assert samples(folder, "llava", annotations="a.jsonl") == ["field"]


@pytest.mark.parametrize("extra", [{"source": "web"}, {"score": 3.5}, {"image_id": 4}, {"note": "See a.jpg.\nOr not"},
                                   {"id": "a.jpg"}])
def test_other_fields_are_not_taken_for_media(folder, extra):
    lines(folder / "a.jsonl", [{**extra, "conversations": talk("a", "b")}])
    assert said(samples(folder, "llava", annotations="a.jsonl")[0]) == ["a", "b"]


def test_media_in_two_fields_of_one_kind_are_refused(folder):
    lines(folder / "a.jsonl", [{"image": "img/0.jpg", "images": ["img/1.jpg"], "conversations": talk("a", "b")}])
    assert samples(folder, "llava", annotations="a.jsonl") == ["media"]


def test_names_may_hold_colons_and_other_characters(make, folder):
    for name in ("12:30.jpg", "a b.jpg", "ü#?%.jpg"):
        (folder / name).write_bytes(make.picture(1))
        lines(folder / "a.jsonl", [{"image": name, "conversations": talk("a", "b")}])
        assert samples(folder, "llava", annotations="a.jsonl")[0].media == {"jpg": folder / name}


def test_the_frames_of_a_video_may_have_one_marker_of_either_kind(make, folder):
    (folder / "vid" / "clip").mkdir()
    for number in range(3):
        (folder / "vid" / "clip" / f"{number}.jpg").write_bytes(make.picture(number))
    for tag in ("<image>", "<video>"):
        lines(folder / "a.jsonl", [{"video": "clip", "conversations": talk(f"{tag}\n?", "!")}])
        (sample,) = samples(folder, "llava", annotations="a.jsonl", videos="vid")
        assert parse_record(json.dumps(sample.record).encode()).turns == (Turn("\n?", "!"),)
    lines(folder / "a.jsonl", [{"video": "clip", "conversations": talk("1: <image>, 2: <image>, 3: <image>?", "!")}])
    (sample,) = samples(folder, "llava", annotations="a.jsonl", videos="vid")
    assert len(parse_record(json.dumps(sample.record).encode()).turns[0].places) == 3


# ---- llava -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "jsonl", "lines in .json", "parquet"])
def test_conversations_are_read_from_every_form_of_file(folder, form):
    rows = [{"id": f"a/{number}", "image": f"{number}.jpg", "conversations": talk(f"<image>\n{number}?", "yes")}
            for number in range(4)]
    name = f"a.{form.rpartition('.')[2]}"
    if form == "json":
        (folder / name).write_text(json.dumps(rows, indent=1))
    elif form == "parquet":
        parquet(folder / name, rows)
    else:
        lines(folder / name, rows)
    found = samples(folder, "llava", annotations=name, images="img")
    assert [sample.record["id"] for sample in found] == [row["id"] for row in rows]
    assert [sample.media["jpg"] for sample in found] == [folder / "img" / f"{number}.jpg" for number in range(4)]
    assert said(found[2]) == ["<image>\n2?", "yes"]


def test_pictures_inside_parquet_are_read_from_their_row(make, folder):
    parquet(folder / "a.parquet", [
        {"id": str(number), "image": {"bytes": make.picture(number), "path": "x.jpg"}, "conversations": talk("?", "!")}
        for number in range(5)])
    found = samples(folder, "llava", annotations="a.parquet")
    assert [sample.media["jpg"] for sample in found] == [make.picture(number) for number in range(5)]


@pytest.mark.parametrize("record", [{"image": ""}, {"image": None}, {"images": []}, {}])
def test_a_record_without_a_medium_is_text(folder, record):
    lines(folder / "a.jsonl", [{"id": 1, **record, "conversations": talk("?", "!")}])
    (sample,) = samples(folder, "llava", annotations="a.jsonl")
    assert (sample.media, set(sample.record)) == ({}, {"id", "conversations"})


@pytest.mark.parametrize("field", ["image", "images"])
def test_several_images_keep_their_order(folder, field):
    lines(folder / "a.jsonl", [{field: ["img/2.jpg", "img/png.jpg"], "conversations": talk("<image><image>?", "!")}])
    (sample,) = samples(folder, "llava", annotations="a.jsonl")
    assert sample.record["image"] == ["0.jpg", "1.png"]
    assert sample.media == {"0.jpg": folder / "img/2.jpg", "1.png": folder / "img/png.jpg"}


def test_extensions_say_what_media_are_whatever_their_files_are_called(make, folder):
    (folder / "img" / "clip.avi").write_bytes(make.video(3))
    lines(folder / "a.jsonl", [{"image": "img/png.jpg", "conversations": talk("?", "!")},
                               {"video": "img/clip.avi", "conversations": talk("?", "!")}])
    assert [set(sample.media) for sample in samples(folder, "llava", annotations="a.jsonl")] == [{"png"}, {"mp4"}]


def test_a_folder_that_stands_for_a_video_is_its_frames_in_order(make, folder):
    (folder / "vid" / "clip").mkdir()
    for number in (2, 10, 1):
        (folder / "vid" / "clip" / f"c_{number}.jpeg").write_bytes(make.picture(number))
    lines(folder / "a.jsonl", [{"video": "clip", "conversations": talk("<video>?", "!")}])
    (sample,) = samples(folder, "llava", annotations="a.jsonl", videos="vid")
    assert [path.name for path in sample.media.values()] == ["c_1.jpeg", "c_2.jpeg", "c_10.jpeg"]


def test_a_video_is_named_below_its_folder(folder):
    lines(folder / "a.jsonl", [{"video": "a.mp4", "conversations": talk("<video>?", "!")}])
    (sample,) = samples(folder, "llava", annotations=["a.jsonl"], videos="vid")
    assert (sample.record["video"], sample.media) == ("mp4", {"mp4": folder / "vid/a.mp4"})


@pytest.mark.parametrize(("turns", "values"), [
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], ["a", "b"]),
    ([{"from": "system", "value": "s"}, *talk("a", "b")], ["s\na", "b"]),
    ([{"from": "gpt", "value": "hello"}, *talk("a", "b")], ["a", "b"]),
    (talk("a", "b", "c"), ["a", "b"]),
])
def test_conversations_of_other_forms_become_ours(folder, turns, values):
    lines(folder / "a.jsonl", [{"conversations": turns}])
    assert said(samples(folder, "llava", annotations="a.jsonl")[0]) == values


@pytest.mark.parametrize(("record", "reason"), [
    ({"conversations": []}, "turns"), ({}, "turns"), ({"conversations": talk("a")}, "turns"),
    ({"conversations": [*talk("a"), *talk("b")]}, "turns"),
    ({"conversations": [{"from": "cat", "value": ""}]}, "turns"),
    ({"conversations": talk("a", "")}, "text"), ({"conversations": talk("a", "b", "c", " \n")}, "text"),
    ({"image": [None], "conversations": talk("a", "b")}, "path"),
    ({"image": ["img/0.jpg", ""], "conversations": talk("a", "b")}, "path"),
    ({"image": "img/9.jpg", "conversations": talk("a", "b")}, "missing"),
    ({"image": "img/0.jpg", "video": "vid/a.mp4", "conversations": talk("a", "b")}, "media"),
    ({"image": 3, "conversations": talk("a", "b")}, "path"),
    ({"image": "a.jsonl", "conversations": talk("a", "b")}, "content"),
    ({"image": "../x.jpg", "conversations": talk("a", "b")}, "path"),
    ({"image": "/etc/passwd", "conversations": talk("a", "b")}, "path"),
    ({"image": "file:///etc/passwd", "conversations": talk("a", "b")}, "path"),
])
def test_an_entry_that_cannot_be_used_says_why(folder, record, reason):
    lines(folder / "a.jsonl", [record])
    assert samples(folder, "llava", annotations="a.jsonl") == [reason]


@pytest.mark.parametrize("link", ["out.jpg", "outside/secret.jpg"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(make, folder, tmp_path_factory, link):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.jpg").write_bytes(make.picture())
    (folder / "out.jpg").symlink_to(outside / "secret.jpg")
    (folder / "outside").symlink_to(outside)
    lines(folder / "a.jsonl", [{"image": link, "conversations": talk("a", "b")}])
    assert samples(folder, "llava", annotations="a.jsonl") == ["path"]


def test_a_line_that_is_no_json_costs_one_entry(folder):
    (folder / "a.jsonl").write_text(json.dumps({"conversations": talk("a", "b")}) + '\n{"x\n[1]\n\n'
                                    + json.dumps({"conversations": talk("c", "d")}) + "\n")
    found = samples(folder, "llava", annotations="a.jsonl")
    assert found[1:3] == ["json", "json"] and said(found[3]) == ["c", "d"]


@pytest.mark.parametrize("blank", ["", " " * 200_000])
def test_an_array_that_breaks_off_gives_what_stands_before_and_says_where(folder, blank):
    rows = [{"conversations": talk(f"{number}", "b")} for number in range(3)]
    text = "[" + ",".join(map(json.dumps, rows)) + blank
    (folder / "a.json").write_text(text + ", {oh]")
    entries, found = source(folder, "llava", annotations="a.json").entries(), []
    with pytest.raises(AuroraError, match=rf"a\.json .* at byte {len(text) + 3} after entry 3"):
        found.extend(entries)
    assert found == rows


def test_a_truncated_array_is_named_with_its_length(folder):
    (folder / "a.json").write_text('[{"conversations": [')
    with pytest.raises(AuroraError, match=r"a\.json .* at byte 20 after entry 0"):
        list(source(folder, "llava", annotations="a.json").entries())


def test_annotations_that_are_missing_are_named(folder):
    with pytest.raises(AuroraError, match=r"annotations: no file '\./?b\.json' below"):
        source(folder, "llava", annotations="b.json")


def test_the_size_of_an_entry_is_that_of_its_media(folder):
    images = ["img/0.jpg", "img/nothing.jpg", "img/1.jpg"]
    lines(folder / "a.jsonl", [{"image": images, "conversations": talk("a", "b")}])
    built = source(folder, "llava", annotations="a.jsonl")
    (entry,) = built.entries()
    assert built.size(entry) == sum((folder / f"img/{number}.jpg").stat().st_size for number in (0, 1))


# ---- captions and tables ---------------------------------------------------------------------------------------


def test_captions_are_asked_for_with_one_of_the_prompts(folder):
    lines(folder / "a.jsonl", [{"file": "0.jpg", "text": f"caption {number}"} for number in range(40)])
    found = samples(folder, "captions", annotations="a.jsonl", path="file", caption="text", images="img",
                    prompts=["one", "two"])
    assert {said(sample)[0] for sample in found} == {"one", "two"}
    assert said(found[7])[1] == "caption 7"
    assert found == samples(folder, "captions", annotations="a.jsonl", path="file", caption="text", images="img",
                            prompts=["one", "two"])


def test_a_caption_of_a_picture_that_is_not_shown_is_a_bad_sample(folder):
    lines(folder / "a.jsonl", [{"file": "img/0.jpg", "text": "A ramp."}, {"text": "A ramp."}])
    found = samples(folder, "captions", annotations="a.jsonl", caption="text")
    assert found[0] == "field" and said(found[1])[1] == "A ramp."


def test_the_caption_of_a_whole_video_is_chosen_from_its_list(folder):
    shown = [{"idx": "0", "content": "first second"}, {"idx": "-1", "content": "the whole"}]
    lines(folder / "a.jsonl", [{"video_path": "a.mp4", "captions": shown}])
    (sample,) = samples(folder, "captions", annotations="a.jsonl", path="video_path", caption="captions", videos="vid")
    assert said(sample)[1] == "the whole" and set(sample.media) == {"mp4"}


def test_captions_stand_in_csv_too(folder):
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "dense"], ["a.mp4", 'a "long",\ncaption'], ["b.mp4", "x"],
                                    ["a.mp4", "1", "2"]])
    found = samples(folder, "captions", annotations="a.csv", path="file", caption="dense", videos="vid")
    assert said(found[0])[1] == 'a "long",\ncaption' and found[1:] == ["missing", "json"]


def test_pairs_of_text_need_no_medium(folder):
    lines(folder / "a.jsonl", [{"q": "why?", "a": "because"}, {"q": "why?"}, {"q": " ", "a": "x"}])
    found = samples(folder, "captions", annotations="a.jsonl", question="q", answer="a")
    assert said(found[0]) == ["why?", "because"] and found[1:] == ["field", "text"]


@pytest.mark.parametrize("options", [{}, {"caption": "c", "question": "q", "answer": "a"}, {"question": "q"}])
def test_captions_are_told_by_one_kind_of_field(folder, options):
    lines(folder / "a.jsonl", [])
    with pytest.raises(AuroraError, match="give caption"):
        source(folder, "captions", annotations="a.jsonl", **options)


def test_a_table_names_its_columns(make, folder):
    parquet(folder / "t.parquet", [{"ask": "what?", "say": ["no", "yes", "yes"], "pic": make.picture(number)}
                                   for number in range(3)])
    found = samples(folder, "table", files="t.parquet", question="ask", answer="say", image="pic")
    assert [said(sample) for sample in found] == [["what?", "yes"]] * 3
    assert found[1].media == {"jpg": make.picture(1)}


def test_two_columns_say_which_seconds_of_a_video_are_meant(folder):
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["q", "a", "v", "from", "to"], ["?", "!", "vid/a.mp4", "0:01", "2.5"],
                                    ["?", "!", "vid/a.mp4", "3", "2"], ["?", "!", "vid/a.mp4", "soon", "2"],
                                    ["?", "!", "img/0.jpg", "1", "2"]])
    found = samples(folder, "table", files="t.csv", question="q", answer="a", video="v", start="from", stop="to")
    assert found[0].record["range"] == [1.0, 2.5]
    assert found[1:] == ["range", "range", "media"]


@pytest.mark.parametrize(("shown", "value"), [(3, 3.0), ("3.5", 3.5), ("1:02", 62.0), ("1:02:03.25", 3723.25)])
def test_times_are_seconds_or_those_of_a_clock(shown, value):
    assert seconds(shown) == value


# ---- M3IT, COCO, VQA v2 ----------------------------------------------------------------------------------------


def test_instructions_with_pictures_inside(make, folder):
    picture = base64.b64encode(make.picture(1)).decode()
    lines(folder / "train.jsonl", [
        {"instruction": "Classify.", "inputs": "Options: a, b", "outputs": "a", "image_base64_str": [picture]},
        {"instruction": "Tell.", "inputs": "", "outputs": "b", "image_base64_str": [picture, picture]},
        {"instruction": "Tell.", "outputs": "c", "image_str": picture},
        {"instruction": "Tell.", "outputs": "d", "image_base64_str": "no base64!"},
        {"instruction": "Tell.", "outputs": "e", "image_str": "\r\n".join(textwrap.wrap(picture, 76)) + "\n"},
        {"instruction": "Tell.", "outputs": "f", "image_str": f"data:image/jpeg;base64,{picture}"},
        {"instruction": "Tell.", "outputs": "g", "image_str": [3]},
    ])
    found = samples(folder, "m3it", annotations="train.jsonl")
    assert [said(sample) for sample in found[:3]] == [["Classify.\nOptions: a, b", "a"], ["Tell.", "b"], ["Tell.", "c"]]
    assert [sample.record["image"] for sample in found[:3]] == ["jpg", ["0.jpg", "1.jpg"], "jpg"]
    assert found[0].media["jpg"] == make.picture(1) and found[3] == "base64"
    assert [sample.media["jpg"] for sample in found[4:6]] == [make.picture(1)] * 2 and found[6] == "base64"


def test_a_data_uri_is_a_picture_in_any_source(make, folder):
    shown = "data:image/jpeg;base64," + base64.b64encode(make.picture(1)).decode()
    lines(folder / "a.jsonl", [{"image": shown, "conversations": talk("<image>a", "b")}])
    assert samples(folder, "llava", annotations="a.jsonl")[0].media == {"jpg": make.picture(1)}


def test_entries_that_hold_their_pictures_are_told_by_their_place(make, folder):
    picture = base64.b64encode(make.picture(1)).decode()
    lines(folder / "train.jsonl", [{"instruction": "a", "outputs": "b", "image_base64_str": picture}] * 3)
    entries = list(source(folder, "m3it", annotations="train.jsonl").entries())
    assert all(len(json.dumps(entry)) < 80 for entry in entries) and len(entries) == 3


@pytest.fixture
def coco(folder):
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (2, 0, 3)]
    shown = [{"image_id": image, "caption": f"{word} of {image}"} for word in ("first", "second") for image in (0, 2)]
    (folder / "captions.json").write_text(json.dumps({"info": {}, "images": images, "annotations": shown}))
    return folder


def test_one_caption_of_each_image_in_the_order_of_the_images(coco):
    found = samples(coco, "coco_captions", annotations="captions.json", images="img")
    assert [sample if isinstance(sample, str) else sample.record["id"] for sample in found] == ["2", "0", "text"]
    assert said(found[1])[1] in ("first of 0", "second of 0")


def test_every_caption_is_a_sample_when_asked_for(coco):
    found = samples(coco, "coco_captions", annotations="captions.json", images="img", every=True)
    assert [said(sample)[1] for sample in found] == ["first of 2", "second of 2", "first of 0", "second of 0"]


@pytest.fixture
def vqa(folder):
    asked = [{"question_id": f"{image}{number}", "image_id": image, "question": f"{number}?"}
             for image in (1, 2) for number in range(2)]
    given = [{"question_id": int(one["question_id"]), "multiple_choice_answer": f"a{one['question_id']}"}
             for one in reversed(asked)]
    given[0] = {"question_id": 21, "answers": [{"answer": word} for word in ("x", "y", "y")]}
    (folder / "q.json").write_text(json.dumps({"questions": asked}))
    (folder / "a.json").write_text(json.dumps({"annotations": [one for one in given if one["question_id"] != 20]}))
    return folder


def vqav2(folder, **options):
    return samples(folder, "vqav2", questions="q.json", annotations="a.json", images="img", file="{image_id}.jpg",
                   prompt="Short.", **options)


def test_questions_find_their_answers_by_id_and_the_most_frequent_counts(vqa):
    # question 20 lacks an answer
    assert [one if isinstance(one, str) else said(one) for one in vqav2(vqa)] == [
        ["0?\nShort.", "a10"], ["1?\nShort.", "a11"], "text", ["1?\nShort.", "y"]]


def test_questions_about_one_image_can_be_one_conversation(folder, vqa):
    (folder / "a.json").write_text(json.dumps({"annotations": [
        {"question_id": number, "multiple_choice_answer": f"a{number}"} for number in (10, 11, 20, 21)]}))
    found = vqav2(folder, by_image=True)
    assert [said(sample) for sample in found] == [["0?\nShort.", f"a{image}0", "1?\nShort.", f"a{image}1"]
                                                 for image in (1, 2)]
    assert found[1].media == {"jpg": folder / "img/2.jpg"}
