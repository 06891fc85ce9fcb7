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


@pytest.mark.slow
def test_statistics_follow_the_config(run: Run, blocks: Path) -> None:
    given = ("stats", blocks / "language_video", "--executor", "serial", "--evaluation", blocks / "heldout")
    few, many = (json.loads(run(*given, "--json", "--keep-ratio", 0.5, "--", f"sampling.fps={fps}")[1])["datasets"]
                 ["language_video"] for fps in (1, 2))
    shared = few["in_evaluation"]["heldout"]
    assert shared["media"] == 0 and shared["turns"] > 0  # "How many objects move?", "1", of other scenes
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


@pytest.mark.parametrize(("arguments", "reported"), [
    (("index", "none"), "no dataset folder none"),
    (("index", "file"), "file is a file; a dataset is a folder of shards"),
    (("index", "empty"), "empty holds no shards, which are files NAME.tar"),
    (("stats", "BLOCKS"), "holds no shards; those of datasets are in "),
    (("validate", "file"), "file is a file; a dataset is a folder of shards"),
    (("preview", "empty"), "empty holds no shards"),
    (("validate", "BLOCKS/vision", "--findings", "empty"), "empty is a folder; give the name of a file"),
    (("validate", "BLOCKS/vision", "--executor", "slurm"), "'slurm' only builds shards"),
    (("list", "bytes.yaml"), "bytes.yaml is not a dataset of a catalogue: 'utf-8' codec"),
    (("build", "llava", "empty", "file", "source.annotations=x"), "file is a file; give the name of a folder to write"),
    (("build", "llava", "empty", "empty", "source.annotations=x"), "empty is the dataset's own folder"),
    (("build", "llava", "empty", "out", "source.annotations=x", "--count", "{a: [}", "generic"), "--count {a: [} "),
])
def test_what_is_no_folder_of_shards_is_said_to_be_what_it_is(
    run: Run, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reported: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("")
    Path("bytes.yaml").write_bytes(b"\xff")
    status, _, err = run(*(argument.replace("BLOCKS", str(blocks)) for argument in arguments))
    assert status == 2 and reported in err and len(err.splitlines()) == 1
    assert not any(Path("empty").iterdir())


@pytest.mark.parametrize(("folder", "reported"), [("file", "file is a file"), ("file/below", "file is a file"),
                                                  ("", "is empty; . is the one at hand")])
def test_blocks_are_not_written_where_no_folder_can_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, reported: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["blocks", folder]) == 2 and reported in capsys.readouterr().err
