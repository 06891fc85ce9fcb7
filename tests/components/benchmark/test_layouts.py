"""What each loader makes of its makers' records: prompts to the letter, moments in seconds, the right option."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from aurora.errors import AuroraError
from aurora.evaluation.summary import render


def of(name: str):
    return pytest.mark.parametrize("made", [name], indirect=True)


@of("activitynet_qa")
def test_activitynet_qa_joins_questions_and_answers(made) -> None:
    first, second = made.items().values()
    assert first.prompt == "Is the athlete wearing trousers? Answer the question using a single word or phrase."
    assert (first.answer, first.family, first.max_new_tokens) == ("yes", "yes/no", 64)
    assert (second.answer, second.family, second.video) == ("blue", "color", "all_test/v_2.webm")
    assert second.extra["question"] == "what color is the hat"


@of("activitynet_qa")
def test_activitynet_qa_reads_lmms_evals_table(made, write) -> None:
    for name in ("test_q.json", "test_a.json"):
        (made.folder / name).unlink()
    write.parquet(made.folder / "data" / "test-00000-of-00001.parquet", [
        {"video_name": "2", "question": "what color is it", "question_id": "v_2_1", "answer": "blue", "type": "4"}])
    assert [(item.answer, item.family) for item in made.items().values()] == [("blue", "color")]


@of("activitynet_qa")
def test_a_question_without_an_answer_is_named(made, write) -> None:
    write.json(made.folder / "test_a.json", [{"answer": "blue", "type": 4, "question_id": "v_2_1"}])
    with pytest.raises(AuroraError, match=r"test_q.json, entry 1: .*test_a.json has no answer.*v_1QIUV7WYKXg_3"):
        made.items()


@of("mvbench")
def test_mvbench_asks_as_lmms_eval_does(made) -> None:
    item = made.items()["action_count/1"]
    assert item.prompt == "Question:How many?\nOption:\n(A) 3\n(B) 2\n(C) 1\nOnly give the best option.\n"
    assert (item.right, item.family, item.max_new_tokens, item.stop) == (1, "action_count", 16, None)


@of("mvbench")
def test_mvbench_shows_the_part_of_a_video_that_was_not_cut(made, write) -> None:
    assert (made.items()["action_sequence/1"].start, made.items()["action_sequence/1"].stop) == (0.0, 4.5)
    write.file(made.folder / "video/star/Charades_segment/video_1.mp4")
    cut = made.items()["action_sequence/1"]
    assert (cut.video, cut.stop) == ("video/star/Charades_segment/video_1.mp4", None)


@of("mvbench")
def test_mvbench_finds_tvqas_folders_of_pictures(made, write) -> None:
    task = {"subtasks": ["episodic_reasoning"]}
    write.json(made.folder / "json" / "episodic_reasoning.json", [
        {"video": "castle_s01e03_seg02_clip_11", "question": "Who?", "candidates": ["He", "She"], "answer": "She",
         "start": 2.5, "end": 7.0, "fps": 3}])
    assert len(made.missing(**task)) == 1
    write.file(made.folder / "video/tvqa/frames_fps3_hq/castle_s01e03_seg02_clip_11/00001.jpg")
    item = made.items(**task)["episodic_reasoning/1"]
    assert (item.video, item.start, item.stop) == ("video/tvqa/frames_fps3_hq/castle_s01e03_seg02_clip_11", 2.5, 7.0)
    assert made.missing(**task) == ()
    write.file(made.folder / "video/tvqa/video_fps3_hq_segment/castle_s01e03_seg02_clip_11.mp4")
    assert made.items(**task)["episodic_reasoning/1"].stop is None


@of("mvbench")
def test_mvbench_takes_the_first_of_two_equal_options(made) -> None:
    assert made.items()["action_count/2"].right == 0


@of("mvbench")
def test_mvbench_has_the_papers_17_tasks(made) -> None:
    assert len(made.build(subtasks="all").subtasks) == 20 and len(made.build(subtasks="paper17").subtasks) == 17
    for subtasks, message in ((["action_cuont"], r"action_cuont.*Did you mean 'action_count'"),
                              (["paper17"], r"write subtasks=paper17, without a list"),
                              ("action_count", r"must be 'all' or 'paper17' or a list, each a string"),
                              (5, r"must be 'all' or 'paper17' or a list"), ([5], r"subtasks\[0\] is 5")):
        with pytest.raises(AuroraError, match=message):
            made.build(subtasks=subtasks)


@of("mlvu")
def test_mlvu_dev_asks_with_an_open_bracket(made) -> None:
    item = made.items()["plotQA/1"]
    assert item.prompt == ("What color is the main male character?\n(A) Yellow\n(B) Red\n(C) Green\n(D) Blue\n"
                           "Only give the best option.\nBest option: (")
    assert (item.options[item.right], item.video) == ("Yellow", "video/1_plotQA/movie101_66.mp4")
    assert made.items()["needle/2"].right == 2  # "3" is an option, not a number of one


@of("mlvu")
def test_mlvu_test_reads_lmms_evals_table(made, write) -> None:
    write.parquet(made.folder / "data" / "test-00000-of-00001.parquet", [
        {"video_name": "test_sports_1.mp4", "duration": 1.0, "question": "Who?\n(A) He\n(B) She\n(C) It\n(D) We",
         "candidates": ["He", "She", "It", "We"], "answer": "B", "task_type": "sportsQA", "question_id": "SQA_0"}])
    item = made.items(split="test")["sportsQA/1"]
    assert item.prompt == "Who?\n(A) He\n(B) She\n(C) It\n(D) We" and item.options[item.right] == "She"
    assert made.missing(split="test") == ("video/test-00000-of-00001/test_sports_1.mp4",)


@of("mlvu")
@pytest.mark.parametrize("above", ["", "MLVU_Test/"])
def test_mlvu_test_reads_its_makers_ground_truth(made, write, above) -> None:
    asked = {"video": "test_sports_1.mp4", "duration": 9.5, "question": "Who wins?",
             "candidates": ["He", "She", "It", "We", "All", "None"], "question_type": "sportsQA",
             "question_id": "SQA_0"}
    write.json(made.folder / f"{above}test_multi_choice_tasks.json", [asked])
    with pytest.raises(AuroraError, match=r"_tasks.json, entry 1: .*test-ground-truth/test_mcq_gt.json"):
        made.items(split="test")
    write.json(made.folder / f"{above}test-ground-truth" / "test_mcq_gt.json", [{**asked, "answer": "We"}])
    write.file(made.folder / f"{above}video" / "test_sports_1.mp4")
    item = made.items(split="test")["sportsQA/1"]
    assert item.prompt == "Who wins?\n(A) He\n(B) She\n(C) It\n(D) We\n(E) All\n(F) None"
    assert (item.right, item.video) == (3, f"{above}video/test_sports_1.mp4")
    assert made.missing(split="test") == ()


@of("mlvu")
def test_an_unknown_task_of_mlvu_is_named(made, write) -> None:
    write.json(made.folder / "json" / "2_needle.json", [{"question_type": "sportsQA", "question": "?"}])
    with pytest.raises(AuroraError, match=r"2_needle.json, entry 1: the task 'sportsQA' is not one of dev"):
        made.items()


@of("mlvu")
@pytest.mark.parametrize("content", [None, b"[]", b""])
def test_mlvu_without_a_task_has_no_score(made, content) -> None:
    answers = {item.id: item.answer for item in made.items().values()}
    assert made.score(answers)["score"] == 100.0
    file = made.folder / "json" / "4_count.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    result = made.score({item.id: item.answer for item in made.items().values()})
    assert (result["score"], result["missing_tasks"]) == (None, ["count"]) and "count" in result["not_scored"]


@of("mvbench")
def test_mvbench_without_a_task_has_no_score(made, write) -> None:
    assert made.score({})["score"] == 0.0
    write.json(made.folder / "json" / "action_count.json", [])
    assert (made.score({})["score"], made.score({})["missing_tasks"]) == (None, ["action_count"])


@of("ovo_bench")
def test_ovo_bench_without_a_task_has_no_score(made, write) -> None:
    records = json.loads((made.folder / "ovo_bench_new.json").read_text())
    write.json(made.folder / "ovo_bench_new.json", [one for one in records if one["task"] in ("EPM", "ASI", "HLD")])
    result = made.score({"7": "B", "ASI": "A", "HLD": "A"})
    assert result["score"] is None and len(result["missing_tasks"]) == 9 and result["groups"] == {"backward": 1.0}


@of("video_mme")
def test_video_mme_asks_as_lmms_eval_does(made) -> None:
    item = made.items()["001-1"]
    assert item.prompt == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "How many?\nA. One.\nB. Two.\nC. Three.\nD. Four.\n\n"
        "Answer with the option's letter from the given choices directly.")
    assert (item.options, item.right, item.family) == (("One.", "Two.", "Three.", "Four."), 2, "short")
    assert list(made.items(long=True)) == ["601-1"]


@of("longvideobench")
def test_longvideobench_reads_its_json_and_its_table(made, write) -> None:
    item = made.items()["86CxyhFV9MI_0"]
    assert item.prompt == ("In the video, which subtitles appear?\nA. promisc\nB. run\nC. see\nD. sit\nE. go\n"
                           "Answer with the option's letter from the given choices directly.\n")
    assert (item.answer, item.family) == ("run", "up to 600 s")
    (made.folder / "lvb_val.json").unlink()
    write.parquet(made.folder / "validation-00000-of-00001.parquet", [
        {"id": "b_1", "video_path": "b.mp4", "question": "Who?", "option0": "she", "option1": "he", "option2": "N/A",
         "option3": "N/A", "option4": "N/A", "correct_choice": 0, "duration_group": 15, "question_category": "S2E"}])
    assert made.items()["b_1"].options == ("she", "he")


@of("lvbench")
def test_lvbench_reads_its_lines_and_lmms_evals_table(made, write) -> None:
    item = made.items()["2"]
    assert item.prompt == "Who is it?\n(A) He\n(B) She\n(C) They\n(D) It\nAnswer the question with the option letter"
    assert (item.options, item.right, item.family) == (("He", "She", "They", "It"), 0, "entity recognition + reasoning")
    (made.folder / "video_info.meta.jsonl").unlink()
    write.parquet(made.folder / "data" / "train-00000-of-00001.parquet", [
        {"uid": "9", "video_path": "Cm73ma6Ibcs.mp4", "question": "Who?", "options": ["He", "She"], "answer": "B"}])
    assert made.items()["9"].prompt == "Who?\n(A) He\n(B) She\nAnswer the question with the option letter"


@of("timescope")
def test_timescope_scores_by_length(made) -> None:
    first, second = made.items().values()
    assert first.prompt == "What is it?\nA. a cat\nB. a dog"
    assert (first.options, first.family) == (("a cat", "a dog"), "00060 s")
    assert (second.answer, second.family) == ("in", "00600 s")


@of("ovo_bench")
def test_ovo_bench_asks_when_the_video_has_run_to_its_moment(made) -> None:
    items = made.items()
    assert {id: item.at for id, item in items.items() if id[0].isdigit()} == {
        "7": 12.5, "8": 3, "9/0": 2, "9/1": 4, "10/0": 2, "10/1": 6, "11/0": 3, "11/1": 5}
    assert {item.start for item in items.values()} == {0.0}
    assert items["7"].prompt == (
        "\nQuestion: Where was the cup?\nOptions:\nA. shelf; B. table;\n\n"
        "Respond only with the letter corresponding to your chosen option (e.g., A, B, C). \n"
        "Do not include any additional text or explanation in your response.\n")
    assert "How many times did they jump?" in items["9/1"].prompt and items["9/1"].answer == "2"
    assert "\nCut the bun.\n" in items["10/0"].prompt
    assert (items["10/0"].answer, items["10/1"].answer) == ("No", "Yes")
    assert "\nWhy did he stop?\n" in items["11/1"].prompt and items["11/1"].answer == "Yes"


@of("ovo_bench")
def test_a_window_shows_the_last_seconds_only(made) -> None:
    items = made.items(window=4.0)
    assert (items["7"].start, items["8"].start) == (8.5, 0.0)


@of("ovo_bench")
def test_ovo_bench_scores_the_mean_of_three_means(made) -> None:
    answers = {"7": "B", "8": "A. STOP", "9/0": "1", "9/1": "1", "10/0": "No.", "10/1": "Yes", "11/0": "Yes",
               "11/1": "Yes", **dict.fromkeys(("ASI", "HLD", "ACR", "ATR", "STU", "FPD", "OJR"), "A")}
    result = made.score(answers)
    assert result["groups"] == {"backward": 1.0, "realtime": 1.0, "forward": pytest.approx((0.5 + 1 + 0.5) / 3)}
    assert result["score"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    assert made.score({**answers, "7": "A house, or B"}, "lmms_compat")["families"]["EPM"] == {"accuracy": 1.0}
    assert made.score({**answers, "7": "A house, or B"})["families"]["EPM"]["accuracy"] == 0.0


@of("streaming_bench")
def test_streaming_bench_asks_at_the_time_stamp(made) -> None:
    first, second = made.items().values()
    assert (first.at, second.at, first.start) == (31.0, 206.0, 0.0)
    assert first.video == second.video == "real/sample_348/video.mp4"
    assert first.prompt.endswith("Question: What was done just now?\n\nOptions:\n"
                                 "A. Cut.\nB. Cooked.\nC. Put.\nD. Ate.\n\nThe best option is:")
    assert (first.options[first.right], second.options) == ("Put.", ("A cup.", "B", "C", "D"))
    assert [item.start for item in made.items(window=60.0).values()] == [0.0, 146.0]


@of("streaming_bench")
def test_streaming_bench_reads_the_hubs_table(made, write) -> None:
    (made.folder / "questions_real.json").unlink()
    write.csv(made.folder / "StreamingBench" / "Real_Time_Visual_Understanding.csv", [
        {"question_id": "Real-Time Visual Understanding_sample_348_2", "task_type": "Counting", "question": "How many?",
         "time_stamp": "00:00:09", "answer": "B", "options": "['A. One.', 'B. Two, or \"so\".', 'C. 3', 'D. 4']"}])
    (item,) = made.items().values()
    assert (item.at, item.answer, item.video) == (9.0, 'Two, or "so".', "real/sample_348/video.mp4")


@of("ovo_bench")
@pytest.mark.parametrize(("place", "wrong", "message"), [
    ((0, "gt"), 0.9, "entry 1: 'gt' must be a whole number, not 0.9"), ((0, "gt"), 2, "'gt' is 2, but there are 2"),
    ((2, "test_info", 1, "count"), 2.9, "entry 3, test_info 2: 'count' must be a whole number, not 2.9"),
    ((3, "test_info", 0, "type"), 7, "entry 4, test_info 1: 'type' is 7, but there are 2"),
    ((0, "realtime"), float("inf"), "entry 1: 'realtime' must be a number"),
    ((0, "video"), "x" * 300 + ".mp4", "entry 1: the video 'xxx.*cannot be looked for")])
def test_a_number_that_stands_for_nothing_is_named(made, write, place, wrong, message) -> None:
    records = within = json.loads((made.folder / "ovo_bench_new.json").read_text())
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = wrong
    write.json(made.folder / "ovo_bench_new.json", records)
    with pytest.raises(AuroraError, match=f"ovo_bench_new.json, {message}" if message.startswith("entry") else message):
        made.items()


@of("longvideobench")
def test_longvideobench_names_a_record_with_a_gap_between_its_options(made, write) -> None:
    (made.folder / "lvb_val.json").unlink()
    write.parquet(made.folder / "validation-00000-of-00001.parquet", [
        {"id": "b_1", "video_path": "b.mp4", "question": "Who?", "option0": "she", "option1": "N/A", "option2": "he",
         "option3": "N/A", "correct_choice": 1, "duration_group": 15, "question_category": "S2E"}])
    with pytest.raises(AuroraError, match=r"parquet, .* 1: there is no 'option1', but an 'option2'"):
        made.items()


@of("streaming_bench")
@pytest.mark.parametrize(("clock", "at"), [("75:59", 4559.0), ("1:02:03", 3723.0), ("00:75:99", None), ("00:60", None),
                                           ("1:00:00:00", None), (":30", None)])
def test_a_clock_has_sixty_minutes_and_seconds(made, write, clock, at) -> None:
    record = json.loads((made.folder / "questions_real.json").read_text())[0]
    record["questions"][0]["time_stamp"] = clock
    write.json(made.folder / "questions_real.json", [record])
    if at is not None:
        assert next(iter(made.items().values())).at == at
    else:
        with pytest.raises(AuroraError, match=f"'time_stamp' must be seconds or a clock .*, not '{clock}'"):
            made.items()


@of("longvideobench")
def test_longvideobench_takes_no_fraction_for_an_option(made, write) -> None:
    record = json.loads((made.folder / "lvb_val.json").read_text())[0]
    write.json(made.folder / "lvb_val.json", [{**record, "correct_choice": 3.7}])
    with pytest.raises(AuroraError, match=r"entry 1: 'correct_choice' must be a whole number, not 3\.7"):
        made.items()


@of("lvbench")
def test_lvbench_names_a_question_type_that_is_none(made, write) -> None:
    record = json.loads((made.folder / "video_info.meta.jsonl").read_text())
    record["qa"][0]["question_type"] = 3
    write.lines(made.folder / "video_info.meta.jsonl", [record])
    with pytest.raises(AuroraError, match=r"line 1, qa 1: 'question_type' must be a list of 1 or more texts, not 3"):
        made.items()


@of("timescope")
@pytest.mark.parametrize("length", [float("inf"), float("nan"), -1.0])
def test_timescope_names_a_length_that_is_none(made, write, length) -> None:
    write.parquet(made.folder / "data" / "test-00000-of-00001.parquet", [
        {"id": "0", "video": "60_0.mp4", "input": "?\nA. a\nB. b", "answer": "B", "type": "QA", "length": length}])
    with pytest.raises(AuroraError, match=r"row 1: 'length' must be a number that is not negative"):
        made.items()


@of("activitynet_qa")
@pytest.mark.parametrize("kind", ["²", "9", "9" * 5000, 4.5, [], None])
def test_a_type_that_activitynet_qa_does_not_know_is_no_family(made, write, kind) -> None:
    write.json(made.folder / "test_a.json", [{"answer": "yes", "type": kind, "question_id": id}
                                             for id in ("v_2_1", "v_1QIUV7WYKXg_3")])
    assert {item.family for item in made.items().values()} == {"all"}


@of("moviechat")
def test_moviechat_asks_of_the_whole_or_at_a_frame(made) -> None:
    first, _ = made.items().values()
    assert (first.at, first.family) == (None, "global")
    assert first.prompt == ("You are able to understand the visual content that the user provides.Follow the "
                            "instructions carefully and explain your answers in detail.When does it happen?")
    assert [item.at for item in made.items(mode="breakpoint").values()] == [100.0, 20.0]


@of("moviechat")
def test_moviechat_reads_lmms_evals_table(made, write) -> None:
    (made.folder / "annotations" / "AWA-6.json").unlink()
    write.parquet(made.folder / "data" / "test-00000-of-00001.parquet", [
        {"video_name": "AWA-6.mp4", "question": "Who?", "answer": "A bear.", "time": 300}])
    assert [item.at for item in made.items(mode="breakpoint", fps=30.0).values()] == [10.0]


@of("vatex")
def test_vatex_is_compared_with_every_caption(made) -> None:
    first = next(iter(made.items().values()))
    assert first.extra["references"] == ["A man speaks.", "Someone talks."]
    assert first.prompt.count("\n") == 5 and first.prompt.endswith("blue mat to do flips.\n")


@of("msrvtt")
def test_msrvtt_asks_about_the_test_split(made, write) -> None:
    (item,) = made.items().values()
    assert (item.id, item.extra["references"]) == ("video7960", ["a woman is singing", "someone sings"])
    write.csv(made.folder / "MSRVTT_JSFUSION_test.csv", [
        {"key": "ret0", "vid_key": "msr7960", "video_id": "video7960", "sentence": "a woman is singing"}])
    write.json(made.folder / "MSRVTT_data.json", {"videos": [], "sentences": [
        {"caption": "one", "video_id": "video7960"}, {"caption": "two", "video_id": "video7960"}]})
    (item,) = made.items(split="1ka").values()
    assert item.extra["references"] == ["one", "two"]


@of("vdc")
def test_vdc_draws_a_prompt_by_the_clips_name(made) -> None:
    items = made.items()
    assert len(items) == 10 and made.items(part="camera").keys() == {"camera/ego_1.mp4", "camera/pexels_2.mp4"}
    item = items["camera/ego_1.mp4"]
    assert item.prompt in made.build().prompts["camera"] and item.answer == "The camera of ego_1."
    assert item.extra["qa_list"] == [{"question": "What of the camera?", "answer": "That."}]


@of("vdc")
def test_vdc_reads_a_table_per_part(made, write) -> None:
    (made.folder / "VDC_1k.jsonl").unlink()
    write.parquet(made.folder / "short" / "test-00000-of-00001.parquet", [
        {"video_name": "ego_1", "caption": "It is.", "qa_list": [{"question": "Is it?", "answer": "Yes."}]}])
    assert made.items(part="short")["short/ego_1"].video == "videos/ego_1.mp4"


@of("llava")
def test_llava_tells_choices_from_open_questions(made) -> None:
    choice, does, who = made.items().values()
    assert (choice.id, choice.options, choice.right) == ("x/1", ("a cat", "a dog"), 1)
    assert choice.prompt == "What is it?\nA. a cat\nB. a dog"
    assert (does.id, does.options, does.answer, who.id) == ("x/2", (), "It runs.", "y")
    result = made.score({"x/1": "B", "x/2": "it runs", "y": "a man"})
    assert (result["score"], result["open"]["exact_match"]) == (100.0, 1.0)


@of("llava")
def test_llava_names_the_turn_that_is_wrong(made, write) -> None:
    write.json(made.folder / "qa.json", [{"video": "clips/a.mp4", "conversations": [
        {"from": "human", "value": "What?"}, {"from": "human", "value": "What?"}]}])
    with pytest.raises(AuroraError, match=r"qa.json, entry 1, conversations 2: gpt or assistant must speak here"):
        made.items()


def one_turn(question: str, answer: str) -> list[dict[str, object]]:
    return [{"video": "clips/a.mp4", "conversations": [
        {"from": "human", "value": question}, {"from": "gpt", "value": answer}]}]


@of("llava")
@pytest.mark.parametrize("form", ["A. {}\nB. {}", "(a) {}\n(b) {}", "a) {}\nb) {}", "Of (A) {} (B) {}",
                                  "(a) {} (b) {}"])
@pytest.mark.parametrize("answer", ["b", "B", "(b)", "B.", "b. blue", "B.blue", "(B) Blue, as the sky", "Blue.",
                                    "The answer is B."])
def test_llava_reads_letters_and_references_as_people_write_them(made, write, form, answer) -> None:
    write.json(made.folder / "qa.json", one_turn("Which?\n" + form.format("red", "blue"), answer))
    (item,) = made.items().values()
    assert (item.options, item.right, item.answer) == (("red", "blue"), 1, "blue")


@of("llava")
@pytest.mark.parametrize(("answer", "message"), [
    ("A. green", "the answer 'A. green' names option A, which is 'red'"), ("(a) blue", "names option A, which is"),
    ("C", "names no option; there are 2"), ("c) green", "names no option; there are 2")])
def test_llava_names_a_reference_that_contradicts_its_options(made, write, answer, message) -> None:
    write.json(made.folder / "qa.json", one_turn("Which?\nA. red\nB. blue", answer))
    with pytest.raises(AuroraError, match=rf"qa.json, entry 1, conversations 2: .*{message}"):
        made.items()


@of("blocks")
def test_blocks_asks_choices_about_a_wrong_video_too(made) -> None:
    items = made.items()
    assert {id: (item.video, item.control) for id, item in items.items()} == {
        "1": ("a.mp4", False), "2": ("b.mp4", False), "3": ("a.mp4", False),
        "1 (wrong video)": ("b.mp4", True), "2 (wrong video)": ("a.mp4", True)}
    assert (items["1"].max_new_tokens, items["3"].max_new_tokens) == (16, 128)
    assert made.items(wrong_videos=False).keys() == {"1", "2", "3"}


@of("blocks")
def test_blocks_without_choices_is_scored_by_word_f1(made, write) -> None:
    choices = made.score({"1": "blue", "2": "blue", "3": "A ball", "1 (wrong video)": "", "2 (wrong video)": ""})
    assert (choices["metric"], choices["score"], choices["open"]["n"]) == ("accuracy, %", 50.0, 1)
    write.lines(made.folder / "questions.jsonl", [
        {"id": "3", "video": "a.mp4", "question": "What happens?", "answer": "A ball rolls away."}])
    opens = made.score({"3": "A ball"})
    assert (opens["metric"], opens["score"]) == ("word F1, %", pytest.approx(50.0))
    text = io.StringIO()
    Console(width=120, file=text).print(render({"scorer": "strict", "judge_needed": None, **opens}))
    assert "word F1, %: 50.00 (strict)" in text.getvalue() and "judge" not in text.getvalue()


@of("blocks")
def test_blocks_asks_for_the_option_or_for_its_letter(made) -> None:
    for id, item in made.items().items():
        lettered = made.items(letters=True)[id]
        if item.options:
            first = item.options[0]
            assert f"(A) {first}" in item.prompt and item.prompt.endswith("Only give the best option.")
            assert f"\nA. {first}\n" in lettered.prompt and lettered.prompt.endswith("given choices directly.")
        else:
            assert lettered == item


@pytest.mark.parametrize(("made", "file", "key"), [
    ("mvbench", "json/action_count.json", "candidates"), ("mlvu", "json/1_plotQA.json", "candidates"),
    ("longvideobench", "lvb_val.json", "candidates"), ("ovo_bench", "ovo_bench_new.json", "options"),
    ("streaming_bench", "questions_real.json", "options")], indirect=["made"])
def test_a_choice_of_more_options_than_letters_is_named(made, file, key, write) -> None:
    records = json.loads((made.folder / file).read_text())
    record = records[0]["questions"][0] if "questions" in records[0] else records[0]
    record[key] = [*map(str, range(1, 27)), *record[key]]
    write.json(made.folder / file, records)
    with pytest.raises(AuroraError, match=rf"{file}, entry 1.*: '{key}' has \d+ texts, but a choice has at most 26"):
        made.items()
