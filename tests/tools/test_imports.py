"""What the tools take from Aurora is still there."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("tool", sorted(path.stem for path in TOOLS.glob("*.py")))
def test_a_tool_can_be_imported(tool):
    importlib.import_module(f"tools.{tool}")
