"""flash-linear-attention's operators as forms: over our rows they compute what ours do."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

import pytest
import torch

from aurora.errors import AuroraError
from components.kernels import _triton
from components.kernels.wkv6 import FORMS, wkv6
from components.kernels.wkv7 import wkv7

INSTALLED = find_spec("fla") is not None
GPU = torch.cuda.is_available()
LENGTHS = [(64, 64), (3, 70, 17)]


def rows(lengths: tuple[int, ...], count: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """`count` tensors [T, 2, 64], a state, and the bounds, on the GPU."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(sum(lengths), 2, 64, generator=generator).cuda() for _ in range(count)]
    state = torch.randn(len(lengths), 2, 64, 64, generator=generator).cuda()
    return tensors, state, torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.skipif(INSTALLED, reason="flash-linear-attention is installed")
def test_what_is_not_installed_is_said_with_the_extra_that_installs_it() -> None:
    tensors = [torch.zeros(4, 2, 32) for _ in range(4)]
    with pytest.raises(AuroraError, match=r"needs flash-linear-attention, pip install 'auroralong\[fla\]'"):
        wkv6(*tensors, torch.zeros(2, 32), torch.tensor([0, 4]), form="fla")
    with pytest.raises(AuroraError, match="needs flash-linear-attention"):
        wkv7(*tensors, *tensors[:2], torch.tensor([0, 4]), form="fla")


def test_it_takes_tensors_of_a_gpu_in_three_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_installed", lambda package: True)
    x = torch.zeros(4, 2, 32)
    assert _triton.fla_unfit(x, x) == "takes tensors on cuda, not on cpu"
    meta = torch.zeros(4, 2, 32, dtype=torch.float64, device="meta")
    assert _triton._no_double(meta, meta) == "takes bfloat16, float16 and float32, not float64"


@pytest.mark.skipif(not INSTALLED, reason="needs flash-linear-attention")
@pytest.mark.filterwarnings("ignore")  # what it says on import is not ours
def test_its_operators_take_what_we_hand_them() -> None:
    from components.kernels import _fla

    shared = ("r", "k", "v", "w", "scale", "initial_state", "output_final_state", "cu_seqlens")
    inspect.signature(_fla.chunk_rwkv6).bind(**dict.fromkeys((*shared, "u")))
    inspect.signature(_fla.chunk_rwkv7).bind(**dict.fromkeys((*shared, "a", "b")))


@pytest.mark.skipif(not (INSTALLED and GPU), reason="needs flash-linear-attention and a GPU")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_wkv6_equals_the_recurrence(lengths: tuple[int, ...]) -> None:
    (r, k, v, w), state, bounds = rows(lengths, 4)
    bonus = torch.randn(2, 64, device="cuda")
    found = wkv6(r, k, v, w, bonus, bounds, state, form="fla")
    wanted = wkv6(*(x.double() for x in (r, k, v, w, bonus)), bounds, state.double(), form="reference")
    for got, want in zip(found, wanted, strict=True):
        assert got is not None and want is not None
        assert (got - want).abs().max() <= 5e-3 * want.abs().max()  # its float32 is tf32


@pytest.mark.skipif(not (INSTALLED and GPU), reason="needs flash-linear-attention and a GPU")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_wkv7_equals_the_recurrence(lengths: tuple[int, ...]) -> None:
    (r, w, k, v, a, gate), state, bounds = rows(lengths, 6)
    a = torch.nn.functional.normalize(a, dim=-1)
    tensors = [r, -0.6 * w.sigmoid(), k, v, -a, a * gate.sigmoid()]
    found = wkv7(*tensors, bounds, state, form="fla")
    wanted = wkv7(*(x.double() for x in tensors), bounds, state.double(), form="reference")
    for got, want in zip(found, wanted, strict=True):
        assert got is not None and want is not None
        assert (got - want).abs().max() <= 5e-3 * want.abs().max()


def test_auto_prefers_our_own_kernels() -> None:
    names = list(FORMS)
    assert names.index("triton") < names.index("fla") < names.index("chunk")
