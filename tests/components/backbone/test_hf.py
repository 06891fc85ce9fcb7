"""Recurrent models of transformers keep the contract, and say what transformers says."""

from __future__ import annotations

import pytest

from aurora.testing.backbone import BackboneContract, Options, Tolerance

FLOAT32 = {"rtol": 1e-3, "atol": 1e-5}
SIZES = {"name": "hf", "hidden_size": 64, "layers": 2, "head_size": 16}
FAMILIES: list[Options] = [
    {**SIZES, "model_type": "mamba", "config": {"state_size": 8}},
    {**SIZES, "model_type": "mamba2", "config": {"state_size": 8, "n_groups": 2, "chunk_size": 8}},
    {**SIZES, "model_type": "falcon_mamba", "config": {"state_size": 8}},
    {**SIZES, "model_type": "recurrent_gemma", "layers": 3, "config": {"attention_window_size": 8}},
    {**SIZES, "model_type": "xlstm"},
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda options: options["model_type"])
def options(request: pytest.FixtureRequest) -> Options:
    return request.param


class TestHF(BackboneContract):
    without_gradient = ("normaliser",)  # xLSTM divides by the larger of it and a bound; the bound is larger here

    @pytest.fixture
    def tolerance(self) -> Tolerance:
        return FLOAT32
