from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Connector, Sorter
from aurora.registry import CONNECTOR, MERGE, SLOTS, SORT, Slot

ROOT = Path(__file__).parents[2]


class Reversed(Sorter):
    """A part from outside."""

    where = "final"

    def __init__(self, *, step: int = 1) -> None:
        self.step = step

    def order(self, tokens):
        raise NotImplementedError


@pytest.fixture
def sort() -> Slot:
    """The sort slot without what other tests put into it."""
    return Slot("sort", Sorter, "components.sort")


FOOTPRINT = """
import sys
from aurora.registry import SLOTS, SORT

def loaded():
    return " ".join(name for name in sys.modules if name.split(".")[0] in ("components", "datamodules"))

names = [slot.known() for slot in SLOTS.values()]
listing = loaded()
SORT.get("raster")
sys.stdout.write(f"{listing}|{loaded()}")
"""


@pytest.fixture(scope="module")
def footprint() -> tuple[set[str], set[str]]:
    """The modules of parts that a fresh process has after listing all names, and after getting one."""
    done = subprocess.run([sys.executable, "-c", FOOTPRINT], cwd=ROOT, text=True, capture_output=True, timeout=120,
                          check=True)
    listing, getting = done.stdout.split("|")
    return set(listing.split()), set(getting.split())


@pytest.mark.slow
def test_listing_imports_no_part(footprint) -> None:
    assert footprint[0] == set()


def test_getting_a_part_imports_no_other_part(footprint) -> None:
    parts = {name for name in footprint[1] if name.count(".") == 2 and "._" not in name}
    assert parts == {"components.sort.raster"}


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS.keys())
def test_every_file_of_a_slot_registers_its_name(slot: Slot) -> None:
    assert slot.known() and all(issubclass(slot.get(name), slot.contract) for name in slot._files())


def test_helpers_are_no_parts() -> None:
    assert not [name for slot in SLOTS.values() for name in slot.known() if name.startswith("_")]


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(AuroraError, match=r"no merge named 'tomme'\. Did you mean 'tome'\? Known: none, pool"):
        MERGE.get("tomme")


def test_a_name_like_none_suggests_nothing() -> None:
    with pytest.raises(AuroraError, match=r"named 'xyzzy'\. Known:"):
        MERGE.get("xyzzy")


def test_an_unknown_option_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(AuroraError, match=r"sort 'size' has no option 'ordre'\. Did you mean 'order'\? Known: "):
        SORT.build({"name": "size", "ordre": "ascending"})


def test_a_config_without_a_name_is_refused() -> None:
    with pytest.raises(AuroraError, match=r"sort: the config .* has no 'name'\. Known: random, raster, size"):
        SORT.build({"order": "ascending"})


def test_an_option_without_a_default_must_be_given() -> None:
    with pytest.raises(AuroraError, match=r"tokenizer 'hf' needs the option\(s\) path"):
        SLOTS["tokenizer"].build({"name": "hf"})


def test_facts_are_given_to_constructors_that_ask_for_them() -> None:
    connector = CONNECTOR.build({"name": "linear"}, in_width=3, out_width=5, colour="red")
    assert next(connector.parameters()).shape == (5, 3)


def test_a_fact_is_no_option() -> None:
    with pytest.raises(AuroraError, match="connector 'linear' has no option 'in_width'"):
        CONNECTOR.build({"name": "linear", "in_width": 3}, in_width=3, out_width=5)


def test_building_leaves_the_config_alone() -> None:
    config = {"name": "size", "order": "ascending"}
    SORT.build(config)
    assert config == {"name": "size", "order": "ascending"}


def test_a_class_can_be_added_by_name(sort: Slot) -> None:
    sort.add("reversed", Reversed)
    assert "reversed" in sort.known() and sort.build({"name": "reversed", "step": 2}).step == 2


def test_a_name_is_taken_once(sort: Slot) -> None:
    sort.add("reversed", Reversed)
    with pytest.raises(AuroraError, match="'reversed' is taken by"):
        sort.add("reversed", Reversed)


def test_the_name_of_a_file_that_was_not_imported_is_taken_too(sort: Slot) -> None:
    with pytest.raises(AuroraError, match=r"'raster' is taken by .*raster\.py"):
        sort.add("raster", Reversed)


def test_a_part_must_be_of_its_contract(sort: Slot) -> None:
    with pytest.raises(AuroraError, match="is not a Sorter"):
        sort.add("wrong", Connector)


def test_a_part_must_have_what_its_contract_says(sort: Slot) -> None:
    class Half(Sorter):
        where = "final"

    with pytest.raises(AuroraError, match="Half lacks order of Sorter"):
        sort.add("half", Half)


def _positional(self, step: int = 1) -> None: ...
def _swallowing(self, **options: int) -> None: ...


@pytest.mark.parametrize("constructor", [_positional, _swallowing])
def test_options_are_given_by_name_and_none_is_swallowed(sort: Slot, constructor) -> None:
    part = type("Part", (Reversed,), {"__init__": constructor})
    with pytest.raises(AuroraError, match="must be keyword-only"):
        sort.add("part", part)


PART = """
from aurora.interfaces import Sorter

class Spiral(Sorter):
    where = "final"

    def __init__(self, *, turns: int = 3) -> None:
        self.turns = turns

    def order(self, tokens):
        raise NotImplementedError
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package that adds a sorter, as pip would leave it on the path."""

    def install(name: str, module: str = PART) -> None:
        (tmp_path / "spirals.py").write_text(module)
        info = tmp_path / "spirals-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spirals\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[aurora.sort]\n{name} = spirals:Spiral\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "spirals", raising=False)

    return install


def test_another_package_adds_a_part(sort: Slot, install) -> None:
    install("spiral")
    assert "spiral" in sort.known() and "spirals" not in sys.modules
    assert sort.build({"name": "spiral", "turns": 5}).turns == 5


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("raster", PART, "the entry point spirals:Spiral needs another name"),
        ("spiral", "import nothing_like_this", "cannot be imported: No module named"),
        ("spiral", "class Other: ...", "cannot be imported"),
        ("spiral", "class Spiral: ...", "is not a Sorter"),
        ("spiral", PART.replace("*, turns", "turns"), "must be keyword-only"),
    ],
)
def test_a_package_that_adds_something_wrong_is_named(sort: Slot, install, name, module, message) -> None:
    install(name, module)
    with pytest.raises(AuroraError, match=message):
        sort.get(name)
