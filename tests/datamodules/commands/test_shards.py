"""`aurora shards validate | stats | preview | index` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora.cli import main
from datamodules.blocks.build import build

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["shards", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    build(folder, scale=0.01, workers=1)
    return folder


def test_good_shards_are_told_to_be_good(run: Run, blocks: Path) -> None:
    status, out, _ = run("validate", blocks / "vision", blocks / "pretrain", "--executor", "serial")
    assert status == 0 and out.count("nothing") == 2


def test_what_is_wrong_is_shown_counted_and_written(run: Run, blocks: Path, tmp_path: Path) -> None:
    tar = blocks / "language_image" / "000000.tar"
    whole = tar.read_bytes()
    try:
        tar.write_bytes(whole[:-1] + b"x")
        findings = tmp_path / "wrong.jsonl"
        status, out, _ = run("validate", tar.parent, "--executor", "serial", "--findings", findings)
        assert status == 1 and "1 sha256" in out
        assert json.loads(findings.read_text())["shard"] == "000000.tar"
        reported = json.loads(run("validate", tar.parent, "--executor", "serial", "--json")[1])
        assert reported["datasets"][str(tar.parent)]["wrong"] == {"sha256": 1}
    finally:
        tar.write_bytes(whole)


def test_statistics_follow_the_config(run: Run, blocks: Path) -> None:
    given = ("stats", blocks / "language_video", "--executor", "serial", "--evaluation", blocks / "heldout")
    few, many = (json.loads(run(*given, "--json", "--keep-ratio", 0.5, "--", f"sampling.fps={fps}")[1])["datasets"]
                 ["language_video"] for fps in (1, 2))
    assert few["in_evaluation"]["heldout"] == {"media": 0, "turns": 0}
    assert few["frames"]["total"] < many["frames"]["total"]
    assert few["tokens"]["0.5"]["total"] - few["text_tokens"]["total"] == 288 * few["frames"]["total"]
    assert "hours of video" in run(*given)[1]


def test_a_preview_is_written_where_it_was_asked_for(run: Run, blocks: Path, tmp_path: Path) -> None:
    status, out, _ = run("preview", blocks / "vision", "--samples", 3, "--output", tmp_path / "page.html")
    assert status == 0 and "3 samples" in out and (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(("arguments", "reported"), [
    (("validate", "nowhere"), "no dataset folder nowhere"),
    (("validate", "x", "--decode", "some"), "'--decode': give a number of samples per shard"),
    (("stats", "x", "--executor", "spark"), "no executor named 'spark'"),
    (("preview", "x", "--samples", "0"), "samples 0"),
    (("build", "llava", "nowhere", "out", "source.annotations=x.json", "--max-bad-rate", "2"),
     "'--max-bad-rate': Input should be"),
])
def test_a_bad_option_is_one_line(run: Run, arguments: tuple[str, ...], reported: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2 and reported in err and len(err.splitlines()) == 1
