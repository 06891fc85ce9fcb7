"""`aurora judge` against a real server in a process of its own, which fails in every way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.evaluation.judge_client import Endpoint
from aurora.evaluation.judging import judge, read_verdicts
from aurora.evaluation.predictions import Prediction, read_items, write_items, write_predictions
from aurora.evaluation.results import read_result
from aurora.evaluation.run import merge
from aurora.registry import BENCHMARK

KEY, MODEL = "sk-right-4f2a", "judge-1"
ROOT = Path(__file__).parents[3]
ANSWERS = ("blue", "It is blue.", "red", "blue", "green", "Blue!", "no hat", "blue")
RIGHT = [True, True, False, True, False, True, False, True]


class Judge:
    """The server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process, self.url = process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1"

    def endpoint(self, **options: Any) -> Endpoint:
        given = {"key": KEY, "concurrency": 1, "timeout": 20.0, "retries": 1, **options}
        return Endpoint(given.pop("url", self.url), given.pop("model", MODEL),
                        given.pop("parameters", {"temperature": 0, "max_tokens": 64}), **given)

    def seen(self) -> list[dict[str, Any]]:
        return self.told()["seen"]

    def told(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url, timeout=20) as response:
            return json.load(response)


@pytest.fixture
def serve() -> Iterator[Callable[..., Judge]]:
    """Starts a judge whose first requests go as the plan says; all are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*plan: str) -> Judge:
        command = [sys.executable, str(Path(__file__).with_name("judge_server.py")), json.dumps(plan)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return Judge(started[-1])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(output: Path, benchmark: Mapping[str, Any], folder: Path, answers: Mapping[str, str | None]) -> Path:
    """The output of a finished evaluation with these answers; None where the video could not be read."""
    items = BENCHMARK.build(benchmark).items(folder).items
    write_items(output, items, {"missing_videos": [], "limit": None, "versions": {}, "hardware": {}})
    lines = [Prediction(item.id, answers[item.id] or "", None if answers[item.id] is not None else "it is broken")
             for item in items]
    for rank in range(2):
        write_predictions(output / f"predictions-{rank}-of-2.jsonl",
                          {"model": "abc", "benchmark": benchmark, "questions": "digest"}, lines[rank::2])
    merge(output)
    return output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Eight questions of ActivityNet-QA about eight videos, five of them answered rightly."""
    return activitynet(tmp_path / "run", tmp_path / "data", dict(enumerate(ANSWERS)))


def activitynet(output: Path, folder: Path, answers: Mapping[int, str | None]) -> Path:
    folder.mkdir(exist_ok=True)
    asked = [{"video_name": f"{number}", "question": f"what is the color of hat {number}",
              "question_id": f"q{number}"} for number in answers]
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps([
        {"answer": "blue", "type": 4 + number % 2, "question_id": f"q{number}"} for number in answers]))
    return finished(output, {"name": "activitynet_qa"}, folder, {f"q{n}": answer for n, answer in answers.items()})


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Two parts of two clips of VDC, with two questions each."""
    folder = tmp_path / "vdc"
    folder.mkdir()
    parts = ("short", "camera", "background", "main_object", "detailed")
    clips = [{"video_id": id, "video_name": f"{id}.mp4", **{f"{part}_caption": "?" for part in parts}} for id in "ab"]
    (folder / "VDC_1k.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    (folder / "VDCScore_qa").mkdir()
    for part in parts:
        (folder / "VDCScore_qa" / f"{part}.jsonl").write_text("".join(json.dumps({id: [
            {"question": f"Which {part}?", "answer": "red"}, {"question": f"What {part}?", "answer": "blue"}]}) + "\n"
            for id in "ab"))
    answers = {f"{part}/{id}.mp4": f"All of {id} is {'red' if part == 'short' else 'green' if id == 'a' else 'blue'}"
               for part in parts for id in "ab"}
    answers["short/b.mp4"] = ""
    return finished(tmp_path / "captions", {"name": "vdc"}, folder, answers)


def verdicts(run: Path) -> list[bool | None]:
    return [one.right for one in read_verdicts(run)]


def files(run: Path) -> tuple[bytes, ...]:
    return tuple((run / name).read_bytes() for name in ("result.json", "verdicts.jsonl"))


@pytest.mark.parametrize(("key", "value"), [("questions", "others"), ("limit", 3)])
def test_items_of_another_run_are_not_judged(key, value, run) -> None:
    about, items = read_items(run)
    write_items(run, items[:3], {**about, key: value})
    before = (run / "result.json").read_bytes()
    with pytest.raises(AuroraError, match=r"items\.jsonl holds other items than the result"):
        judge(run, Endpoint("http://127.0.0.1:9/v1", MODEL, {}))
    assert (run / "result.json").read_bytes() == before


def test_answers_that_are_newer_than_the_result_are_not_judged(run) -> None:
    with (run / "predictions.jsonl").open("a") as file:
        file.write(json.dumps(asdict(Prediction("q0", "red"))) + "\n")
    with pytest.raises(AuroraError, match="the predictions are newer than the result; run `aurora eval` to its end"):
        judge(run, Endpoint("http://127.0.0.1:9/v1", MODEL, {}))


# ---- what is judged ------------------------------------------------------------------------------------------------


def test_answers_are_judged_and_the_result_says_by_whom(serve, run) -> None:
    server = serve()
    before = json.loads((run / "result.json").read_text())
    result = judge(run, server.endpoint())
    assert before["score"] is None and json.loads((run / "result.json").read_text()) == result
    assert verdicts(run) == RIGHT
    assert (result["score"], result["n"], result["judged"], result["unjudged"], result["mean_score"]) == (
        62.5, 8, 8, 0, (5 * 5 + 3) / 8)
    assert result["interval"][0] < 62.5 < result["interval"][1]
    assert tuple(result["interval"]) == read_result(run).interval()
    assert {name: row["accuracy"] for name, row in result["families"].items()} == {"color": 0.25, "object": 1.0}
    assert result["judge"]["model"] == MODEL and result["judge"]["served"] == ["judge-1-0613"]
    assert result["judge"]["parameters"] == {"temperature": 0, "max_tokens": 64}
    assert len(result["judge"]["prompt"]) == 64
    assert KEY not in (run / "result.json").read_text()
    body = server.seen()[1]["body"]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
        "model": MODEL, "temperature": 0, "max_tokens": 64}
    assert "Question: what is the color of hat 1\nCorrect Answer: blue\nPredicted Answer: It is blue.\n" in \
        body["messages"][1]["content"]


def test_vdc_is_judged_in_two_steps_by_what_stands_in_the_caption(serve, captions) -> None:
    server = serve()
    result = judge(captions, server.endpoint(concurrency=4))
    # of the parts: an empty caption and one that is half right; the others half right or not at all
    assert {name: row["accuracy"] for name, row in result["families"].items()} == {
        "short": 0.25, "camera": 0.25, "background": 0.25, "main_object": 0.25, "detailed": 0.25}
    assert (result["score"], result["n"], result["judge_questions"], result["empty"]) == (25.0, 10, 20, 1)
    assert len(server.seen()) == 2 * 18  # nothing is asked about an empty caption
    first, *_ = read_verdicts(captions)
    assert (first.id, first.answer, first.right) == ("short/a.mp4", "red", True)


def test_what_is_empty_or_failed_is_wrong_and_no_judge_is_asked(serve, tmp_path) -> None:
    run = activitynet(tmp_path / "run", tmp_path / "data", {0: "blue", 1: "", 2: None, 3: " \n"})
    server = serve()
    result = judge(run, server.endpoint())
    assert (result["score"], result["n"], result["failed"], result["unjudged"]) == (25.0, 4, 1, 0)
    assert len(server.seen()) == 1
    assert [one.reason for one in read_verdicts(run)[1:]] == [
        "the answer is empty", "the video could not be read", "the answer is empty"]


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["429", "429 Wed, 21 Oct 2015 07:28:00 GMT", "500", "503", "cut", "no json",
                                     "no choices", "empty", "refuse", "length", "What a nice question!", "slow"])
def test_what_may_pass_is_asked_again(failure, serve, run) -> None:
    server = serve(failure, failure) if failure in ("empty", "refuse") else serve(failure)
    result = judge(run, server.endpoint())
    assert (result["score"], result["unjudged"]) == (62.5, 0) and verdicts(run) == RIGHT


@pytest.mark.parametrize("form", ["parts", "half a character"])
def test_a_verdict_in_parts_or_beside_half_a_character_is_read_and_kept(form, serve, run) -> None:
    server = serve(f"*{form}")
    assert judge(run, server.endpoint())["score"] == 62.5 and verdicts(run) == RIGHT
    assert judge(run, server.endpoint())["score"] == 62.5 and len(server.seen()) == 8


def test_a_judge_that_hangs_is_asked_again_after_the_timeout(serve, run) -> None:
    assert judge(run, serve("hang").endpoint(timeout=1.5))["score"] == 62.5


def test_the_wait_that_a_server_asks_for_is_kept(serve, run) -> None:
    server = serve("429 2")
    judge(run, server.endpoint())
    first, second, *_ = server.seen()
    assert second["time"] - first["time"] >= 2


def test_so_many_requests_are_made_at_a_time(serve, run) -> None:
    server = serve("*slow")
    judge(run, server.endpoint(concurrency=3))
    assert 2 <= server.told()["most"] <= 3


def test_a_wait_of_an_hour_ends_the_command(serve, run) -> None:
    with pytest.raises(AuroraError, match=r"asks to be left alone for 3600 seconds: it answered with status 429"):
        judge(run, serve("429 3600").endpoint())


@pytest.mark.parametrize(("plan", "reason"), [
    (["500"] * 2, "it answered with status 500: status 500"),
    (["400"], "it answered with status 400: status 400"),
    (["cut"] * 2, "the connection broke off (RemoteProtocolError)"),
    (["no json"] * 2, "its response is not JSON"),
    (["no choices"] * 2, 'its response holds no message: {"object": "chat.completion", "choices": []}'),
    (["too deep"] * 2, "its response is not JSON"),
    (["empty"] * 3, "it said nothing"),
    (["refuse"] * 3, "it refused: I cannot help with that."),
    (["length"] * 3, "its answer was cut off at the most tokens; max_tokens=N allows more"),
    (["Let me see…"] * 3, "it said 'Let me see…'"),
])
def test_what_got_no_verdict_is_named_and_counted_but_not_as_wrong(plan, reason, serve, run) -> None:
    server = serve(*plan)
    result = judge(run, server.endpoint())
    assert verdicts(run) == [None, *RIGHT[1:]]
    assert (result["unjudged"], result["judged"], result["accuracy"]) == (1, 7, 4 / 7)
    assert result["unjudged_questions"] == [
        {"id": "q0", "question": "what is the color of hat 0", "reason": reason}]
    assert result["score"] is None and "1 of 8 questions are unjudged, more than 1 %" in result["not_scored"]
    again = judge(run, server.endpoint())  # of which only the one is asked
    assert (again["score"], again["unjudged"], "not_scored" in again) == (62.5, 0, False)
    assert len(server.seen()) == len(plan) + 8


def test_below_one_percent_unjudged_there_is_a_score_of_the_others(serve, tmp_path) -> None:
    run = activitynet(tmp_path / "run", tmp_path / "data", dict.fromkeys(range(120), "blue"))
    result = judge(run, serve("400").endpoint(concurrency=8))
    assert (result["score"], result["unjudged"], result["judged"]) == (100.0, 1, 119)


def test_a_judge_that_always_fails_ends_the_command_and_nothing_is_lost(serve, run) -> None:
    server, before = serve("", "", "*500"), (run / "result.json").read_bytes()
    with pytest.raises(AuroraError, match=r"failed 5 times in a row, the last time because it answered with status 500"
                                          r".*are kept in .*verdicts\.sqlite; the same command goes on"):
        judge(run, server.endpoint(retries=0))
    assert (run / "result.json").read_bytes() == before
    with sqlite3.connect(run / "verdicts.sqlite") as cache:
        assert cache.execute("SELECT count(*) FROM verdicts").fetchone() == (2,)


def test_a_judge_that_says_nothing_of_use_changes_nothing(serve, run) -> None:
    judge(run, serve().endpoint())
    before = files(run)
    with pytest.raises(AuroraError, match=r"gave no verdict, so nothing is scored; the first reason: it said 'Hm\.'"):
        judge(run, serve("*Hm.").endpoint(concurrency=4))
    assert files(run) == before


@pytest.mark.parametrize(("options", "message"), [
    ({"key": "sk-wrong"}, r"refuses the key \(status 401\)"),
    ({"key": None}, r"wants a key, and none was given; --key-env names one \(status 401\)"),
    ({"model": "judge-2"}, r"has no model 'judge-2' there, or nothing at this URL.*\(status 404: The model `judge-2`"),
    ({"url": "http://127.0.0.1:9/v1"}, r"at http://127\.0\.0\.1:9/v1 cannot be reached \(.*\), after 2 attempts"),
    ({"url": "http://no-such-host.invalid/v1"}, "cannot be reached"),
])
def test_what_no_request_survives_is_one_message_that_holds_no_key(options, message, serve, run) -> None:
    server, before = serve(), (run / "result.json").read_bytes()
    with pytest.raises(AuroraError, match=message) as raised:
        judge(run, server.endpoint(**options))
    assert "sk-" not in str(raised.value)
    assert (run / "result.json").read_bytes() == before and len(server.seen()) <= 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://a/v1", "http://user:secret@a/v1", "https://a/v1?key=secret",
                                 "", "https://"])
def test_a_url_that_makes_no_sense_or_holds_a_secret_is_refused(url) -> None:
    with pytest.raises(AuroraError, match="must be http") as raised:
        Endpoint(url, MODEL, {})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://a:99999999/v1", "http://a:b/v1"])
def test_a_url_that_is_none_is_refused(url) -> None:
    with pytest.raises(AuroraError, match="the judge's URL"):
        Endpoint(url, MODEL, {})


def test_a_url_may_be_given_whole() -> None:
    assert Endpoint("http://a/v1/chat/completions", MODEL, {}).base_url == "http://a/v1"
    assert KEY not in repr(Endpoint("http://a/v1", MODEL, {}, key=KEY))


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_what_was_judged_is_not_asked_again(serve, run, tmp_path) -> None:
    server = serve()
    judge(run, server.endpoint(), cache=tmp_path / "shared.sqlite")
    whole = files(run)
    other = activitynet(tmp_path / "other", tmp_path / "data", dict(enumerate([*ANSWERS[:7], "yellow"])))
    judge(run, server.endpoint(), cache=tmp_path / "shared.sqlite")
    judge(other, server.endpoint(), cache=tmp_path / "shared.sqlite")
    assert files(run) == whole and len(server.seen()) == 9
    assert not (run / "verdicts.sqlite").exists()


def test_another_judge_or_other_parameters_are_asked_anew(serve, run) -> None:
    server, other = serve(), serve()
    for parameters in ({"temperature": 0}, {"temperature": 0, "seed": 1}, {"temperature": 0, "seed": 2}):
        judge(run, server.endpoint(parameters=parameters))
    judge(run, other.endpoint(parameters={"temperature": 0}))
    assert (len(server.seen()), len(other.seen())) == (24, 8)


def test_a_cache_that_is_something_else_is_refused_and_kept(serve, run, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("something of value, and longer than the head of a database " * 20)
    with pytest.raises(AuroraError, match=r"notes\.txt cannot be used as the cache of verdicts"):
        judge(run, serve().endpoint(), cache=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("something of value")


@pytest.mark.process
@pytest.mark.slow
def test_killed_at_any_verdict_it_ends_with_the_same_files(serve, captions) -> None:
    """The command in a process of its own, killed twice while it waits for the judge, in each of VDC's steps."""
    judge(captions, serve().endpoint())
    whole = files(captions)
    for name in ("verdicts.sqlite", "verdicts.jsonl"):
        (captions / name).unlink()
    server = serve("", "hang", "", "", "hang")
    for asked in (2, 5):
        process = subprocess.Popen(command(captions, server), env=environment(), stderr=subprocess.DEVNULL)
        wait_for(lambda asked=asked: len(server.seen()) >= asked)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command(captions, server), env=environment(), check=True, capture_output=True, text=True)
    first, again = (json.loads(one) for one in (whole[0], (captions / "result.json").read_bytes()))
    assert again["judge"].pop("base_url") == server.url and first["judge"].pop("base_url") != server.url
    assert again == first and files(captions)[1] == whole[1] and KEY not in done.stdout + done.stderr
    assert len(server.seen()) == 2 * 18 + 2  # those that it was killed in


def command(run: Path, server: Judge) -> list[str]:
    return [sys.executable, "-m", "aurora", "judge", str(run), "--model", MODEL, "--base-url", server.url,
            "--key-env", "JUDGE_KEY", "--concurrency", "1"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "JUDGE_KEY": KEY}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert what()


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_shows_scores_and_no_key(serve, run, capsys, monkeypatch) -> None:
    server = serve()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main(["judge", str(run), "--model", MODEL, "--base-url", server.url, "seed=3", "max_tokens=null"]) == 0
    shown = capsys.readouterr()
    assert "judged accuracy, %: 62.50" in shown.out and "color" in shown.out and KEY not in shown.out + shown.err
    sent = server.seen()[0]["body"]
    assert (sent["seed"], sent["temperature"], "max_tokens" in sent) == (3, 0, False)


@pytest.mark.parametrize(("words", "message"), [
    (["--key-env", "NO_SUCH_KEY"], "--key-env NO_SUCH_KEY: there is no key in this environment variable"),
    (["--key-env", "sk-1-2"], "--key-env takes the name of an environment variable, not the key"),
    (["model=x"], "model= is set by `aurora judge` itself"),
    (["temperature"], "'temperature' is not a parameter such as seed=1"),
    (["--timeout", "0"], "must be above 0"),
    (["--concurrency", "0"], "concurrency"),
])
def test_options_that_make_no_sense_are_named(words, message, run, capsys) -> None:
    assert main(["judge", str(run), "--model", MODEL, *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "sk-1-2" not in shown


def test_only_a_finished_run_that_needs_a_judge_is_judged(serve, run, tmp_path) -> None:
    endpoint = serve().endpoint()
    with pytest.raises(AuroraError, match=r"holds no result\.json; give the --output of an `aurora eval`"):
        judge(tmp_path / "nothing", endpoint)
    (tmp_path / "data" / "questions.jsonl").write_text(json.dumps(
        {"id": "1", "video": "a.mp4", "question": "Which?", "options": ["red", "blue"], "answer": 1}))
    other = finished(tmp_path / "blocks", {"name": "blocks"}, tmp_path / "data", {"1": "red"})
    with pytest.raises(AuroraError, match=r"blocks needs no judge; its score is in result\.json"):
        judge(other, endpoint)
    path = run / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(AuroraError, match="holds no prediction of 'q7'; run `aurora eval` to its end first"):
        judge(run, endpoint)
    assert len(read_items(run)[1]) == 8
