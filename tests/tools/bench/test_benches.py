"""Every bench end to end in small, and what its definitions rest on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora.registry import BACKBONE, MERGE
from tools.bench import language, machine, towers, train, weights
from tools.bench.__main__ import main
from tools.bench.case import Settings, difference
from tools.bench.operators import OPERATORS, Operator, Shape

Run = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit status, rows of results.json, what was shown) of `python -m tools.bench`."""

    def run(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        status = main([*arguments, "--quick", "--out", str(tmp_path / "out")])
        cases = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
        return status, [row for case in cases for row in case["rows"]], capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other packages, when they are imported
@pytest.mark.parametrize("what", [["kernels"], ["prefill", "--dtype", "bfloat16"], ["decode", "--dtype", "float32"],
                                  ["vision", "--dtype", "bfloat16"], ["train"]], ids=lambda what: what[0])
def test_a_quick_bench_runs_and_all_that_is_here_agrees(run: Run, what: list[str]) -> None:
    status, rows, shown = run(*what)
    assert [row["note"] for row in rows if row["status"] == "failed"] == []
    assert status == 0
    for row in rows:
        assert row["contestant"] in shown
        assert row["status"] == "missing" or (row["seconds"]["median"] > 0 and row["of_limit"]["median"] > 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_results_are_written_as_json_markdown_and_picture_and_nothing_else_is_left(run: Run, tmp_path: Path) -> None:
    _, rows, _ = run("prefill", "--dtype", "float32")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "results.md", "results.png"]
    page = (out / "results.md").read_text()
    assert all(f"| {row['contestant']} |" in page for row in rows if row["status"] == "ok")
    reported = json.loads((out / "results.json").read_text())
    assert {"command", "date", "device", "threads", "versions", "cases"} <= reported.keys()
    assert reported["versions"]["torch"] == torch.__version__
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peers_that_are_not_installed_are_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", nothing)
    status, rows, shown = run("prefill", "--dtype", "bfloat16")
    notes = {row["contestant"]: row["note"] for row in rows}
    assert notes == {"aurora": "", "rwkv": "not installed: pip install rwkv",
                     "llama.cpp bf16": "not installed: pip install llama-cpp-python"}
    assert status == 0 and "not installed: pip install rwkv" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_another_result_than_the_peers_ends_with_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rwkv")
    read = language.Authors.read
    monkeypatch.setattr(language.Authors, "read", lambda self, tokens: read(self, tokens[:-1]))
    status, rows, shown = run("prefill", "--dtype", "float32")
    assert status == 1
    assert "parity" in next(row["note"] for row in rows if row["contestant"] == "rwkv")
    assert "parity" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--dtype", "int8"], "kernels has no case in int8"),
        (["kernels", "--device", "mps"], "only cpu and cuda can be timed"),
        (["decode", "--weights", "nowhere.pth"], "no such file"),
        (["decode", "--threads", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_an_error(arguments: list[str], message: str, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_the_loops_of_the_peers_compute_the_operators(operator: Operator) -> None:
    shape = Shape(2, 9, 3)
    inputs = [x.double().float() for x in operator.inputs(shape, torch.Generator().manual_seed(0))]
    loop = next(peer for peer in operator.peers(False) if peer.missing is None)
    expected = operator(*(x.double() for x in inputs), shape=shape, form="reference")
    assert difference(loop.compute(*inputs, shape=shape), expected) < 1e-5


def test_random_weights_are_a_checkpoint_of_the_backbone_and_the_same_every_time(tmp_path: Path) -> None:
    first = weights.random_weights(tmp_path, weights.QUICK, "float32")
    stored = torch.load(first, weights_only=True)
    model = BACKBONE.build(weights.QUICK.config, vocab_size=weights.QUICK.vocab_size)
    model.load_base(str(first))
    assert all(torch.isfinite(x).all() and x.std() > 0 for x in stored.values())
    weights.write_random(tmp_path / "again.pth", weights.QUICK, torch.float32)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pth", first.name]


def test_the_full_size_is_the_authors_16b() -> None:
    shapes = weights.FULL.shapes()
    assert len(shapes) == 678
    assert sum(shape.numel() for shape in shapes.values()) == 1_599_873_024


def test_a_token_costs_two_operations_per_weight() -> None:
    cost = language.cost(weights.FULL, "bfloat16", 1)
    parameters = 1_599_873_024 - 65536 * 2048  # the embedding is looked up, not multiplied
    assert cost.flops == pytest.approx(2 * parameters, rel=0.02)
    assert cost.bytes == pytest.approx(2 * parameters, rel=0.02)


def test_hidden_units_that_are_silent_need_not_be_read() -> None:
    every, half = (language._stepping(weights.FULL, "bfloat16", used).bytes for used in (1.0, 0.5))
    assert every - half == language.AT_ONCE * 24 * 2048 * 7168  # a half of them, of two bytes each


def test_bfloat16_passes_and_a_lost_token_does_not(tmp_path: Path) -> None:
    settings = Settings(quick=True, folder=tmp_path)
    case = next(case for case in language.prefill(settings) if "bfloat16" in case.name)
    assert case.oracle is not None
    right = case.oracle("")
    backbone = language.load_backbone(language.weights_file(settings, "bfloat16"), weights.QUICK, "bfloat16", "cpu")
    ids = language._ids(language.QUICK_PROMPT, weights.QUICK.vocab_size)
    whole, lost = (language.Aurora(backbone).read(read) for read in (ids, ids[:-1]))
    assert difference(whole, right) < case.tolerance / 3 and difference(lost, right) > 3 * case.tolerance


def test_merging_removes_what_the_schedule_says() -> None:
    counts = towers.merged_tokens(towers.FULL, 0.1)
    keep = MERGE.build({"name": "tome"}).keep(576, 24, 0.1)
    assert len(counts) == 24
    assert counts[0][0] == 576 and counts[-1][1] == keep
    assert towers.cost(towers.FULL, 1, "float32", counts).flops < 0.6 * towers.cost(towers.FULL, 1, "float32").flops


def test_a_training_row_is_full_and_each_frame_has_its_places() -> None:
    size = train.TINY
    batch = train._row(size, "cpu")
    places = batch.frames[0].positions.flatten()
    assert len(places.unique()) == size.frames * size.kept and int(batch.cu_seqlens[-1]) == size.positions
    assert int((batch.targets != train.IGNORE).sum()) == size.learned
    assert (batch.targets[places] == train.IGNORE).all()


def test_llama_cpp_reads_the_same_model(tmp_path: Path) -> None:
    """In float32, where nothing but the order of sums differs; prompt and single tokens."""
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    settings = Settings(quick=True, folder=tmp_path)
    from tools.bench.gguf_file import write_gguf
    from tools.bench.readers import Aurora, Llama, load_backbone

    path = language.weights_file(settings, "float32")
    write_gguf(torch.load(path, weights_only=True), tmp_path / "model.gguf", torch.float32)
    llama = Llama(tmp_path / "model.gguf", threads=1, most_tokens=64, gpu=False)
    ours = Aurora(load_backbone(path, weights.QUICK, "float32", "cpu"))
    for reader in (llama, ours):
        reader.forget()
    ids = list(range(1, 30))
    assert difference(llama.read(ids[:20]), ours.read(ids[:20])) < 1e-4
    assert difference(llama.decode(ids[20:]), ours.decode(ids[20:])) < 1e-4
