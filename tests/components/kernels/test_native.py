"""Compiled kernels: what is done where there is no compiler, no cache, no OpenMP, or an older processor."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aurora.errors import AuroraError
from components.kernels import _native
from components.kernels._native import INSTRUCTION_SETS, NativeUnavailable
from components.kernels.wkv6 import wkv6
from components.kernels.wkv7 import wkv7

ROOT = Path(__file__).parents[3]
CACHED = (_native.library, _native.missing, _native._passing_folder)


def forget() -> None:
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing has been loaded before, nor is what this test loads by the next."""
    forget()
    yield
    forget()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Path:
    """A source `answer.cpp` and an empty cache."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(_native, "SOURCES", tmp_path / "csrc")
    monkeypatch.setenv("AURORA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_kernel_is_compiled_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _native.library("answer").answer() == 42
    monkeypatch.setenv("PATH", "")
    forget()
    assert _native.library("answer").answer() == 42


def test_a_kernel_is_compiled_anew_when_its_source_changes(small: Path) -> None:
    assert _native.library("answer").answer() == 42
    (small / "csrc/answer.cpp").write_text('extern "C" int answer() { return 43; }\n')
    forget()
    assert _native.library("answer").answer() == 43


def test_a_spoilt_file_in_the_cache_is_replaced(small: Path) -> None:
    _native._build("answer")
    (kept,) = (small / "cache/kernels").iterdir()
    spoilt = kept.with_suffix(".new")  # not in place: the file is mapped
    spoilt.write_bytes(kept.read_bytes()[:100])
    spoilt.rename(kept)
    assert _native.library("answer").answer() == 42


def test_without_a_compiler_the_message_says_what_to_install(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(NativeUnavailable, match="install g"):
        _native.library("answer")
    assert "install g++" in str(_native.missing("answer"))


def test_a_compiler_that_fails_is_quoted(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(small / "c++", "echo out of cheese >&2; exit 3"))
    assert "out of cheese" in str(_native.missing("answer"))
    assert not list((small / "cache/kernels").iterdir())


def test_a_compiler_that_never_ends_is_stopped(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(small / "c++", "exec sleep 60"))
    monkeypatch.setattr(_native, "TIMEOUT_SECONDS", 0.1)
    assert "timed out" in str(_native.missing("answer"))


def test_a_compiler_without_openmp_serves(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = 'case "$*" in *-fopenmp*) echo "unsupported option \'-fopenmp\'" >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", compiler(small / "c++", f'{refuse}\nexec g++ "$@"'))
    assert _native.library("answer").answer() == 42


def test_a_compiler_older_than_the_processor_serves(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = 'case "$*" in *-mavx*) echo "unrecognized option \'-mavx2\'" >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", compiler(small / "c++", f'{refuse}\nexec g++ "$@"'))
    assert _native.library("answer").answer() == 42


def test_a_cache_that_cannot_be_written_is_done_without(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (small / "file").touch()
    monkeypatch.setenv("AURORA_CACHE", str(small / "file/below"))
    with caplog.at_level(logging.WARNING):
        assert _native.library("answer").answer() == 42
    assert "AURORA_CACHE" in caplog.text


@pytest.mark.slow
def test_several_processes_may_compile_at_once(small: Path) -> None:
    code = (
        "import sys, pathlib\nfrom components.kernels import _native\n"
        "_native.SOURCES = pathlib.Path(sys.argv[1])\nprint(_native.library('answer').answer())"
    )
    command = [sys.executable, "-c", code, str(small / "csrc")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=100)[0] for process in both] == ["42\n"] * 2
    assert len(list((small / "cache/kernels").iterdir())) == 1


@pytest.mark.parametrize("asked", ["sse9", "AVX2"])
def test_an_instruction_set_that_is_not_here_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_CPU", asked)
    with pytest.raises(AuroraError, match=rf"AURORA_CPU={asked}: this processor has .*plain"):
        _native.instruction_set()


def test_a_wider_instruction_set_than_the_processors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_widest_set", lambda: "avx2")
    monkeypatch.setenv("AURORA_CPU", "avx512")
    with pytest.raises(AuroraError, match="this processor has avx2, plain"):
        _native.instruction_set()


def forward_and_backward(threads: int) -> list[torch.Tensor]:
    """Both recurrences on two sequences, in every result and gradient; the sums that rounding is measured against."""
    generator = torch.Generator().manual_seed(0)
    r, w, k, v, a, b = (torch.randn(150, 3, 40, generator=generator) for _ in range(6))
    bonus, state = torch.randn(3, 40, generator=generator), torch.randn(2, 3, 40, 40, generator=generator)
    a = torch.nn.functional.normalize(a, dim=-1)
    leaves = [x.requires_grad_() for x in (r, w, k, v, a, b, bonus, state)]
    cut = torch.tensor([0, 140, 150])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        six = wkv6(r, k, v, w, bonus, cut, state, form="cpu")
        seven = wkv7(r, -w.exp(), k, v, a, -a * b.sigmoid(), cut, state, form="cpu")
        loss = sum(x.square().sum() for x in (*six, *seven))
        return [*six, *seven, *torch.autograd.grad(loss, leaves)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [name for name in INSTRUCTION_SETS if name in ("avx2", "plain")])
def test_every_instruction_set_gives_the_same(asked: str, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    widest = forward_and_backward(1)
    if asked not in list(INSTRUCTION_SETS)[list(INSTRUCTION_SETS).index(_native._widest_set()) :]:
        pytest.skip(f"this processor has no {asked}")
    forget()
    monkeypatch.setenv("AURORA_CPU", asked)
    for got, want in zip(forward_and_backward(1), widest, strict=True):
        assert (got - want).abs().max() <= 3e-6 * want.abs().max()


def test_threads_beyond_the_heads_share_the_columns_of_a_head() -> None:
    for got, want in zip(forward_and_backward(16), forward_and_backward(1), strict=True):
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_threads_are_those_of_torch() -> None:
    forward_and_backward(2)
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.split()[-1] for line in lines if "libgomp" in line}) == 1


@pytest.mark.slow
def test_without_a_compiler_chunks_take_the_place_and_it_is_said_once(tmp_path: Path) -> None:
    code = (
        "import logging, torch\nlogging.basicConfig(level=logging.INFO)\n"
        "from components.kernels.wkv6 import wkv6\nfrom components.kernels.wkv7 import wkv7\n"
        "x, cut = torch.ones(20, 2, 8), torch.tensor([0, 20])\n"
        "for _ in range(3):\n    wkv6(x, x, x, x, x[0], cut)\n    wkv7(x, -x, x, x, -x / 8, x / 8, cut)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", "CXX": "/nowhere/g++", "AURORA_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for op in ("wkv6", "wkv7"):
        assert done.stderr.count(f"the compiled kernel '{op}' is not available, a slower form takes its place") == 1
        assert done.stderr.count(f"{op}: form 'chunk' on cpu") == 1
