"""Overrides among the words of a command line, and for a saved model: the same `key=value` as in training, on the
config that lies in the model's folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import yaml
from omegaconf import OmegaConf

from aurora.checkpoint import DESCRIBED
from aurora.config import CONFIG_FOLDER, check_kinds
from aurora.errors import AuroraError, suggest
from aurora.registry import SLOTS

_OVERRIDE = re.compile(r"(?:[+]{0,2}|~)(?P<root>[a-z_]+)(?:[.@/][\w.@/]*)?(?P<equals>=)?", re.IGNORECASE)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that are not overrides, and the overrides: KEY=VALUE, or ~KEY, with a key at the top of the config.

    AuroraError for a key that is nearly one of them: `keep_raito=0.5` is not meant as a question.
    """
    others: list[str] = []
    overrides: list[str] = []
    known = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()}
    known |= {str(key) for key in OmegaConf.load(CONFIG_FOLDER / "aurora.yaml")} - {"defaults"} | {"stages"}
    for word in words:
        found = _OVERRIDE.match(word)
        if found is None or not (found["equals"] or word.startswith("~")):
            others.append(word)
        elif found["root"] in known:
            overrides.append(word)
        elif " " not in word and difflib.get_close_matches(found["root"], known, cutoff=0.7):
            raise AuroraError(f"{word!r}: the config has no {found['root']!r}.{suggest(found['root'], sorted(known))}")
        else:
            others.append(word)
    return others, overrides


def override(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The config with `merge=pool` (another part, with the options of its yaml), `merge.schedule=floor` or
    `keep_ratio=0.5` applied in order. AuroraError for a key that a model's config does not have."""
    changed = deepcopy(dict(config))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise AuroraError(f"{text!r} is not an override; an override is KEY=VALUE, such as keep_ratio=0.5")
        root, *below = key.split(".")
        if root not in DESCRIBED:
            raise AuroraError(f"a saved model has no {root!r} to override.{suggest(root, list(DESCRIBED))}")
        if root in SLOTS and not below:
            changed[root] = part(root, value)
        else:
            _set(changed, key.split("."), _parse(text, value))
    check_kinds(changed)
    return changed


def part(slot: str, name: str) -> dict[str, Any]:
    """The config of a part by name: its yaml if it has one, else the name alone."""
    if name not in SLOTS[slot].known():
        raise AuroraError(f"no {slot} named {name!r}.{suggest(name, SLOTS[slot].known())}")
    return {"name": name, **configured(slot, name)}


def configured(slot: str, name: str) -> dict[str, Any]:
    """The options that a part's yaml gives; those it leaves to the user are left out."""
    path = CONFIG_FOLDER / slot / f"{name}.yaml"
    if not path.is_file():
        return {}
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if value != "???" and key != "name"}


def _set(config: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *above, last = path
    for key in above:
        below = config.setdefault(key, {})
        if not isinstance(below, dict):
            raise AuroraError(f"{'.'.join(path)}: {key} is {below!r}, which has no options")
        config = below
    config[last] = value


def _parse(text: str, value: str) -> Any:
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise AuroraError(f"{text!r}: the value is not valid YAML") from error
    return parsed
