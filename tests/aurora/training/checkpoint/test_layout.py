import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from aurora.errors import AuroraError
from aurora.training.checkpoint.layout import MAX_NUMBERS, from_json, to_json

RUN = Path("/runs/mine")


def through_a_file(value):
    return from_json(json.loads(json.dumps(to_json("it", value, RUN))), RUN)


@pytest.mark.parametrize("value", [
    None, True, 3, 0.1, math.inf, "word", [1, [2.5, None]], {"a": {"b": [1]}}, (1, (2, "x")), {"pair": (1, 2)}, {}, [],
    {1: "a", 20: [2]}, "/runs/mine/x.ckpt", {"/runs/mine/best": 0.5}])
def test_values_come_back_as_they_were(value):
    back = through_a_file(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 3), (2, 2)])
def test_tensors_come_back_exactly(dtype, shape):
    tensor = (torch.randn(shape, dtype=torch.float64) * 3).to(dtype)
    assert_close(through_a_file({"t": [tensor]})["t"][0], tensor, rtol=0, atol=0)


def test_numbers_that_are_none_come_back_too():
    back = through_a_file(torch.tensor([math.nan, -math.inf]))
    assert back[0].isnan() and back[1] == -math.inf


@pytest.mark.parametrize(("value", "message"), [
    ({"a": [0, object()]}, r"it\.a\[1\] is a object"),
    ({"a": {1: 2, 0.5: 3}}, r"it\.a is a mapping with keys such as 1"),
    ((torch.zeros(MAX_NUMBERS + 1),), r"it\[0\] is a tensor of 100,001 numbers of torch\.float32"),
    (torch.zeros(2, dtype=torch.complex64), r"it is a tensor of 2 numbers of torch\.complex64"),
])
def test_what_json_does_not_know_is_refused_with_its_place(value, message):
    with pytest.raises(AuroraError, match=message):
        to_json("it", value, RUN)


def test_paths_of_a_run_go_where_it_is_moved():
    stored = to_json("it", {"best": "/runs/mine/a", "other": "/runs/other", "folder": RUN}, RUN)
    there = {"best": "/moved/a", "other": "/runs/other", "folder": "/moved"}
    assert from_json(json.loads(json.dumps(stored)), Path("/moved")) == there
