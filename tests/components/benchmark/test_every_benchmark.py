"""What every registered benchmark must show, on its makers' layout with two or three records."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest

from aurora.config import named_part
from aurora.errors import AuroraError
from aurora.evaluation.predictions import read_items, write_items
from aurora.registry import BENCHMARK

CAPTIONS = ("msrvtt", "vatex")


def test_all_videos_of_its_layout_are_found(of_every) -> None:
    found = of_every.build().items(of_every.folder)
    assert found.missing == () and all((of_every.folder / item.video).is_file() for item in found.items)


def test_a_missing_video_is_named_and_its_questions_are_still_asked(of_every) -> None:
    before = of_every.build().items(of_every.folder)
    gone = before.items[0].video
    (of_every.folder / gone).unlink()
    after = of_every.build().items(of_every.folder)
    assert len(after.missing) == 1 and not (of_every.folder / gone).exists()
    assert [item.id for item in after.items] == [item.id for item in before.items]


def test_reading_twice_gives_the_same_items(of_every) -> None:
    assert of_every.build().items(of_every.folder) == of_every.build().items(of_every.folder)


def test_items_survive_being_written_down(of_every, tmp_path) -> None:
    items = of_every.build().items(of_every.folder).items
    write_items(tmp_path / "out", items, {"limit": None})
    assert read_items(tmp_path / "out") == ({"limit": None}, list(items))


def test_a_choice_knows_its_right_option(of_every) -> None:
    for item in of_every.build().items(of_every.folder).items:
        assert item.prompt.strip() and item.answer.strip() and item.max_new_tokens > 0
        assert (item.right is None) is (not item.options)
        assert item.right is None or item.options[item.right] == item.answer


def test_a_score_says_what_it_counts_over_all_items(of_every) -> None:
    if of_every.name in CAPTIONS:
        pytest.importorskip("aurora.evaluation.captions")
    benchmark = of_every.build()
    items = benchmark.items(of_every.folder).items
    for scorer in benchmark.scorers:
        for answers in ({item.id: None for item in items}, {item.id: "" for item in items},
                        {item.id: item.answer for item in items}):
            result = benchmark.score(items, answers, scorer)
            assert (isinstance(result["metric"], str) and result["score"] is None) or 0 <= result["score"] <= 1000
            assert json.loads(json.dumps(result)) == result
            asked = sum(not item.control for item in items)
            assert result["n"] + result.get("open", {}).get("n", 0) == asked


def test_a_judge_is_given_the_question_and_what_is_right(of_every) -> None:
    judge = of_every.build().judge
    for item in of_every.build().items(of_every.folder).items if judge else ():
        if judge == "yes_no":
            assert item.extra["question"] and item.answer
        else:
            assert judge == "vdc" and all(pair.keys() == {"question", "answer"} for pair in item.extra["qa_list"])


def test_an_empty_folder_is_told_what_is_looked_for(every, tmp_path) -> None:
    with pytest.raises(AuroraError, match=r"has no \S+"):
        BENCHMARK.build({"name": every}).items(tmp_path)
    with pytest.raises(AuroraError, match=r"nowhere"):
        BENCHMARK.build({"name": every}).items(tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["", ".", "/abs/*", "../*.json", "**x", "a\0b", "x" * 300])
def test_annotations_are_looked_for_inside_of_the_folder_only(every, pattern, tmp_path) -> None:
    if every != "blocks":  # its questions have one place
        with pytest.raises(AuroraError, match="annotations"):
            BENCHMARK.build({"name": every, "annotations": pattern}).items(tmp_path)


def test_a_record_that_makes_no_sense_is_named(of_every) -> None:
    """Every annotation file in turn is broken in every text and list that it holds."""
    whole = of_every.folder.with_name("whole")
    shutil.copytree(of_every.folder, whole)
    broken = 0
    for path in sorted(path for path in whole.rglob("*.json*") if path.is_file()):
        name = path.relative_to(whole)
        for text in (b"[{]", b'[{"id": 1}, 3]\n', b'{"id": "1"}\n'):
            (of_every.folder / name).write_bytes(text)
            try:
                of_every.build().items(of_every.folder)
            except AuroraError as error:
                assert str(of_every.folder) in str(error) or name.name in str(error)
                broken += 1
        shutil.copyfile(path, of_every.folder / name)
    assert broken or not list(whole.rglob("*.json*"))


def test_a_video_outside_of_the_folder_is_refused(of_every) -> None:
    names = [name for name in NAMES if (of_every.name, name) != ("vdc", "video_id")]  # there it names no file

    def outside(value: object) -> object:
        if isinstance(value, dict):
            return {key: "../../secret.mp4" if key in names and isinstance(one, str) else outside(one)
                    for key, one in value.items()}
        return [outside(one) for one in value] if isinstance(value, list) else value

    for path in of_every.folder.rglob("*.json*"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("".join(json.dumps(outside(json.loads(line))) + "\n" for line in lines))
    if list(of_every.folder.rglob("*.parquet")):
        pytest.skip("the layout is Parquet; the same code looks for its videos")
    with pytest.raises(AuroraError, match="must be a path inside"):
        of_every.build().items(of_every.folder)


NAMES = ("video", "video_name", "video_path", "videoID", "video_id", "key")


def test_its_yaml_names_all_its_options(every) -> None:
    assert named_part("benchmark", every).keys() == {"name", *BENCHMARK.options(every)}
    BENCHMARK.build(named_part("benchmark", every))


def test_items_are_plain_json(of_every) -> None:
    for item in of_every.build().items(of_every.folder).items:
        assert json.loads(json.dumps(asdict(item))) == {**asdict(item), "options": list(item.options)}
