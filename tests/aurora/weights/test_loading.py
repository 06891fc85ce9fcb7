"""Tensors into modules, in parts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from aurora.errors import AuroraError
from aurora.weights import loading
from aurora.weights.io import open_tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype, value: float) -> None:
    for length in (1, 7, 33, 1000):
        largest = torch.full((length,), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
        loading.require_finite("model.pth", "a", largest)
        for place in range(0, length, 13):
            tensor = largest.float().nan_to_num() if dtype.itemsize == 1 else largest.clone()
            tensor[place] = value
            with pytest.raises(AuroraError, match=r"model\.pth: a holds values that are not finite"):
                loading.require_finite("model.pth", "a", tensor.to(dtype))


def test_counts_are_not_looked_at() -> None:
    loading.require_finite("model.pth", "a", torch.arange(3))


@pytest.mark.parametrize("part", [1, 7, 12, 1000])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_any_size_give_the_tensors_in_the_dtypes_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, device: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "_PART_ELEMENTS", part)
    written = {"0.weight": torch.randn(5, 3), "0.bias": torch.randn(5), "1.weight": torch.randn(2, 5)}
    save_file(written, tmp_path / "model.safetensors")
    module = nn.Sequential(nn.Linear(3, 5, device=device, dtype=dtype), nn.Linear(5, 2, bias=False, device=device,
                                                                                  dtype=dtype))
    loading.load_parts(module, open_tensors(tmp_path), mapped=True)
    loaded = module.state_dict()
    assert loaded.keys() == written.keys()
    for name, tensor in written.items():
        assert torch.equal(loaded[name], tensor.to(dtype))
