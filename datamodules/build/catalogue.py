"""Public datasets by name: what each is, whose, and how its makers' files become shards (`configs/dataset`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from aurora.config import CONFIG_FOLDER
from aurora.errors import AuroraError, suggest
from aurora.options import read_fields

FOLDER = CONFIG_FOLDER / "dataset"
Kind = Literal["text", "image", "images", "video"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One entry of the catalogue."""

    name: str  # of its yaml, and of its folder below data.root
    title: str
    homepage: str
    licence: str  # as its makers state it
    samples: int | None  # as published; None where nobody says
    kinds: tuple[Kind, ...]
    bytes: int | None  # of the media, as published
    layout: str  # what stands below the input folder, for humans
    source: Mapping[str, Any]  # the source part and its options; paths below the input folder
    notes: str = ""


def known_datasets() -> list[str]:
    """Every name of the catalogue."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_dataset(name: str) -> Dataset:
    """The entry of a name, or of a path to a yaml of the same form. AuroraError says what is known or wrong."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and path.stem not in known_datasets():
        raise AuroraError(f"no dataset named {name!r}.{suggest(name, known_datasets())}")
    try:
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AuroraError(f"{path} is not a dataset of a catalogue: {' '.join(str(error).split())}") from error
    if not isinstance(entry, dict) or "name" in entry:
        raise AuroraError(f"{path} is not a dataset of a catalogue: it is a mapping without a name, which the file has")
    dataset = read_fields(Dataset, str(path), {"name": path.stem, **entry})
    if not dataset.kinds or not isinstance(dataset.source.get("name"), str):
        raise AuroraError(f"{path}: kinds {list(dataset.kinds)} and source {dict(dataset.source)} must name what the "
                          "samples are and the part that reads them")
    return dataset
