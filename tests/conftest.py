"""What holds for all tests."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # workers share the cores; before anything imports torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")

PROCESS_FIXTURES = {"start_process", "follow", "runs", "begin", "layouts", "processes", "ranks", "differences",
                    "undisturbed", "nodes", "hold"}
"""Fixtures that start processes: what uses one is marked so."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures that they use."""
    for item in items:
        if PROCESS_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.process)
