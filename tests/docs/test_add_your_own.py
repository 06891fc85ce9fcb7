"""The page "Add your own linear RNN", word for word."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest


@pytest.fixture(scope="module")
def said(follow: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block of commands prints; pip installs beside the packages that are there, and asks no server."""
    folder = tmp_path_factory.mktemp("page")
    installed = str(folder / "installed")
    return follow("add-your-own-linear-rnn.md", folder, PIP_TARGET=installed, PYTHONPATH=installed, PIP_NO_DEPS="1",
                  PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1")


def test_the_package_installs_and_keeps_the_contract(said: list[str]) -> None:
    assert "Successfully installed aurora-mingru" in said[0]
    assert re.search(r"\b2\d passed", said[0])


def test_the_backbone_is_listed_with_its_options(said: list[str]) -> None:
    assert "minGRU: the smallest gated linear RNN." in said[1] and "hidden_size=512  layers=12" in said[1]


def test_it_trains_and_answers(said: list[str]) -> None:
    assert "language_video" in said[2] and "2/2" in said[2]
