"""Causal transformers keep the contract but for the size of their memory, and say what transformers says."""

from __future__ import annotations

import pytest

from aurora.testing.backbone import BackboneContract, Options, Tolerance

FLOAT32 = {"rtol": 1e-3, "atol": 1e-5}
SIZES = {"name": "transformer", "hidden_size": 64, "layers": 2, "head_size": 16}
FAMILIES: list[Options] = [
    {**SIZES, "model_type": "llama", "config": {"num_key_value_heads": 2}},
    {**SIZES, "model_type": "qwen2"},
    {**SIZES, "model_type": "mistral", "config": {"sliding_window": 9}},
    {**SIZES, "model_type": "gemma2", "config": {"sliding_window": 9}},
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda options: options["model_type"])
def options(request: pytest.FixtureRequest) -> Options:
    return request.param


class TestTransformer(BackboneContract):
    @pytest.fixture
    def tolerance(self) -> Tolerance:
        return FLOAT32
