"""Every registered backbone keeps the contract of `aurora.testing.backbone`."""

from __future__ import annotations

import pytest

from aurora.errors import AuroraError
from aurora.registry import BACKBONE
from aurora.testing.backbone import VOCAB, BackboneContract, Options, Tolerance

SIZES = {"hidden_size": 64, "layers": 2, "head_size": 32}


@pytest.fixture(scope="module", params=BACKBONE.known())
def options(request: pytest.FixtureRequest) -> Options:
    return {"name": request.param, **SIZES}


class TestBackbone(BackboneContract):
    @pytest.fixture
    def tolerance(self, options: Options) -> Tolerance:
        # models of transformers compute norms, gates and angles in float32
        return {"rtol": 1e-3, "atol": 1e-5} if options["name"] in ("hf", "transformer") else {}


@pytest.mark.parametrize("option", [{"hidden_size": 40}, {"layers": 0}, {"head_size": 0}], ids=str)
def test_sizes_that_do_not_fit_are_refused(options: Options, option: dict[str, int]) -> None:
    with pytest.raises(AuroraError, match=str(next(iter(option.values())))):
        BACKBONE.build({**options, **option}, vocab_size=VOCAB)
