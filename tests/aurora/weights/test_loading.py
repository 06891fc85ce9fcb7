"""Tensors into modules, in parts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from aurora.weights import loading
from aurora.weights.io import open_tensors


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
