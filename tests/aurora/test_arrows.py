"""Arrows point one way: parts know the frame, the frame reaches parts by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("components", "datamodules")


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def imports(path: Path) -> Iterator[str]:
    """What a file imports by statement, wherever it stands; relative names with their dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files("aurora"), ids=named)
def test_the_frame_imports_no_part(path: Path) -> None:
    below = {f"aurora.{part}" for part in PARTS}
    wrong = [name for name in imports(path) if name.split(".")[0] in PARTS or ".".join(name.split(".")[:2]) in below]
    assert not wrong


@pytest.mark.parametrize("path", files("components"), ids=named)
def test_components_know_no_data(path: Path) -> None:
    assert not [name for name in imports(path) if "datamodules" in name.split(".")]


@pytest.mark.parametrize("path", files("datamodules"), ids=named)
def test_data_knows_no_components(path: Path) -> None:
    assert not [name for name in imports(path) if "components" in name.split(".")]


@pytest.mark.parametrize("path", files(*PARTS), ids=named)
def test_parts_import_their_siblings_relatively(path: Path) -> None:
    # In the wheel the parts lie below aurora/, so an absolute name would be another one there.
    assert not [name for name in imports(path) if name.split(".")[0] in PARTS]


@pytest.mark.parametrize("path", files(*PARTS), ids=named)
def test_relative_imports_stay_inside_their_folder(path: Path) -> None:
    depth = len(path.relative_to(ROOT).parts) - 1
    assert not [name for name in imports(path) if len(name) - len(name.lstrip(".")) > depth]


@pytest.mark.parametrize("path", [path for path in files(*PARTS) if path.name == "__init__.py"], ids=named)
def test_packages_of_parts_import_nothing(path: Path) -> None:
    assert path.read_text() == ""
