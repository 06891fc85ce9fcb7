"""`aurora shards list`: the catalogue of public datasets."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from aurora.config import CONFIG_FOLDER, load_mixture
from aurora.mixture import read_mixture
from aurora.registry import import_part

COLUMNS = ("name", "title", "kinds", "samples", "licence", "read by")
WIDTH = 150


def list(options: Namespace) -> int:
    """Every dataset in a line, or all that is known of one."""
    catalogue = import_part("datamodules.build.catalogue")
    names = [options.name] if options.name else catalogue.known_datasets()
    found = {name: asdict(catalogue.load_dataset(name)) for name in names}
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    elif options.name:
        _show_one(found[options.name])
    else:
        _show_all(found)
    return 0


def _show_all(found: dict[str, dict[str, Any]]) -> None:
    readers = _readers()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column == "samples" else "left", no_wrap=column != "licence")
    for name, dataset in found.items():
        samples = dataset["samples"]
        table.add_row(name, dataset["title"], " ".join(dataset["kinds"]), "" if samples is None else f"{samples:,}",
                      dataset["licence"], " ".join(readers.get(name, ())))
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    console.print("`aurora shards list NAME` shows one; `aurora shards build NAME INPUT OUTPUT` makes its shards. "
                  "Licences are told as their makers state them, and are yours to check.")


def _show_one(dataset: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for key, value in dataset.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        console.print(f"{key:<9} " + text.strip().replace("\n", "\n" + " " * 10), markup=False)


def _readers() -> dict[str, tuple[str, ...]]:
    """By dataset, the mixtures of ours that read it."""
    mixtures = sorted(path.stem for path in (CONFIG_FOLDER / "mixture").glob("*.yaml"))
    read = {mixture: read_mixture(mixture, load_mixture(mixture)).datasets for mixture in mixtures}
    return {name: tuple(mixture for mixture in mixtures if name in read[mixture])
            for name in dict.fromkeys(name for datasets in read.values() for name in datasets)}
