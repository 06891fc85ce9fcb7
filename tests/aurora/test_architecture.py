"""Imports point one way: parts know the frame, the frame reaches parts by name, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("components", "datamodules")
PRODUCT = ("aurora", *PARTS)

Graph = Mapping[str, set[str]]


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """What a file imports by statement, wherever it stands; relative names with their dots."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def graph() -> Graph:
    """From every file of the product, by its module's name, to those that it imports anywhere: at its top, inside of
    functions, under TYPE_CHECKING."""
    known = {module(path): path for path in files(*PRODUCT)}
    return {name: set(_imported(name, path, known.keys())) - {name} for name, path in known.items()
            # what `import aurora` offers is loaded when it is asked for, and may be anything
            if name != "aurora"}


def _imported(name: str, path: Path, known: Set[str]) -> Iterator[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (above + (node.module or "")).strip(".")
            for alias in node.names:
                yield from [full for full in (f"{base}.{alias.name}", base) if full in known][:1]


def circles(edges: Graph) -> list[str]:
    """Every set of names that reach each other, with the imports among them."""
    reach = {name: _reachable(name, edges) for name in edges}
    groups = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in edges}
    return [", ".join(f"{name} → {other}" for name in sorted(group) for other in sorted(edges[name] & group))
            for group in sorted(groups, key=sorted) if len(group) > 1]


def _reachable(start: str, edges: Graph) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in edges.get(waiting.pop(), ()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def rooms(package: str) -> Graph:
    """The imports among what lies directly in a package: a folder counts as one, a file by itself."""
    depth = package.count(".") + 2
    inside = {name for name in graph() if name.startswith(f"{package}.")}
    edges: dict[str, set[str]] = {}
    for name in inside:
        room = ".".join(name.split(".")[:depth])
        others = {".".join(other.split(".")[:depth]) for other in graph()[name] & inside}
        edges.setdefault(room, set()).update(others - {room})
    return edges


PACKAGES = [name for name in sorted({module(path.parent / "__init__.py") for path in files(*PRODUCT)})
            if any(path.is_dir() for path in (ROOT / name.replace(".", "/")).iterdir())]


def test_the_frame_imports_no_part() -> None:
    none([f"{named(path)} imports {name}" for path in files("aurora") for name in imports(path)
         if name.removeprefix("aurora.").split(".")[0] in PARTS])


def test_components_and_data_do_not_know_each_other() -> None:
    none([f"{named(path)} imports {name}" for own, other in (PARTS, PARTS[::-1]) for path in files(own)
         for name in imports(path) if other in name.split(".")])


def test_parts_import_their_siblings_relatively() -> None:
    """In the wheel the parts lie below aurora/, so an absolute name would be another one there."""
    none([f"{named(path)} imports {name}" for path in files(*PARTS) for name in imports(path)
         if name.split(".")[0] in PARTS])


def test_relative_imports_stay_inside_their_top_folder() -> None:
    none([f"{named(path)} imports {name}" for path in files(*PARTS) for name in imports(path)
         if len(name) - len(name.lstrip(".")) > len(path.relative_to(ROOT).parts) - 1])


def test_packages_of_parts_import_nothing() -> None:
    none([named(path) for path in files(*PARTS) if path.name == "__init__.py" and path.read_text()])


def test_no_files_import_each_other_in_a_circle() -> None:
    none(circles(graph()))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folders_import_each_other_in_a_circle(package: str) -> None:
    none(circles(rooms(package)))


def test_no_private_module_is_imported_by_a_string() -> None:
    """A type checker cannot follow such an import; what others need has a public name or is part of a contract."""
    found = []
    for path in files(*PRODUCT):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_part", "import_module")):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if any("._" in text or text.startswith("_") for text in texts if isinstance(text, str)):
                    found.append(f"{named(path)}:{node.lineno}: {ast.unparse(node)}")
    none(found)
