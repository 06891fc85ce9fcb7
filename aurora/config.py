"""Composes configs from `configs/` and command-line overrides, into plain containers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from aurora.assemble import INJECTED
from aurora.errors import AuroraError, suggest
from aurora.options import check_kind
from aurora.registry import SLOTS

_FRAME = Path(__file__).parent
CONFIG_FOLDER = next(path for path in (_FRAME / "configs", _FRAME.parent / "configs") if path.is_dir())
ASSET_FOLDER = _FRAME / "assets"
_TREE = Mapping[str, Any]
_MIXTURE = re.compile(r"stages\.\w+(\.validation)?\.mixture")
_KINDS: dict[str, Any] = {
    "run": str, "stage": str, "init_from": str | None, "restart": bool, "seed": int, "dtype": str,
    "quantize": str | None, "keep_ratio": float, "sampling": _TREE, "stages": _TREE,
    "trainer": _TREE, "logger": _TREE, "base_weights": Mapping[str, _TREE],
    **dict.fromkeys(SLOTS, _TREE),
}

OmegaConf.register_new_resolver("asset", lambda path: str(ASSET_FOLDER / path), replace=True)


def load_config(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed config: `overrides` are Hydra's, such as `experiment=blocks` or `stages.vision.peak_lr=1e-4`.

    What a yaml leaves to the user (`???`) and nobody gave is absent: whoever needs it says so, and a command that
    does not need it works without.
    """
    parsed = [_parse(override) for override in overrides]
    for override in parsed:
        _check_choice(override)
    # Hydra would merge what is given into the mixture that is there.
    mixtures = [override for override in parsed if _MIXTURE.fullmatch(override.key_or_group)]
    overrides = [given for given, override in zip(overrides, parsed, strict=True) if override not in mixtures]
    try:
        config: dict[str, Any] = _given(_compose(overrides))
        _drop_of_other_parts(config, [override for override in parsed if override not in mixtures])
        _set_mixtures(config, mixtures)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise AuroraError(_readable(error, parsed)) from error
    check_kinds(config)
    return config


def load_mixture(name: str) -> dict[str, Any]:
    """The mixture of a name in `configs/mixture`, or of a path to a yaml."""
    known = sorted(path.stem for path in (CONFIG_FOLDER / "mixture").glob("*.yaml"))
    if name not in known and not name.endswith((".yaml", ".yml")):
        raise AuroraError(f"no mixture named {name!r}.{suggest(name, known)}; or give a path to a yaml")
    path = CONFIG_FOLDER / "mixture" / f"{name}.yaml" if name in known else Path(name)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise AuroraError(f"mixture {path}: {' '.join(str(error).split())}") from error
    check_kind(f"mixture {path}", content, Mapping[str, Any])
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _set_mixtures(config: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Sets the stages' mixtures that are given, and puts in the place of every name what it stands for."""
    stages = config.get("stages")
    if not isinstance(stages, dict):
        return
    for override in overrides:
        stage, *validation = override.key_or_group.split(".")[1:-1]
        if not isinstance(stages.get(stage), dict):
            raise AuroraError(f"the config has no {f'stages.{stage}'!r}.{suggest(stage, stages)}")
        tree = stages[stage]
        if validation:
            tree["validation"] = tree = tree.get("validation") or {}
        tree["mixture"] = override.value()
    for stage in stages.values():
        for tree in (stage, stage.get("validation")) if isinstance(stage, dict) else ():
            if isinstance(tree, dict) and isinstance(tree.get("mixture"), str):
                tree["mixture"] = load_mixture(tree["mixture"])


def check_kinds(config: Mapping[str, Any]) -> None:
    """AuroraError for a value at the top of a config that is of another kind than is read there."""
    for key, value in config.items():
        check_kind(key, value, _KINDS.get(key, Any))


def _compose(overrides: Sequence[str]) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIG_FOLDER), version_base="1.3"):
        return OmegaConf.to_container(compose("aurora", overrides=list(overrides)), resolve=True)


def _drop_of_other_parts(config: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Takes out what an experiment says of the part that it names, where another part is chosen that has no such
    option: its head_size is nothing to a backbone without heads."""
    chosen = {given.key_or_group: given.value() for given in overrides
              if given.key_or_group in SLOTS and isinstance(given.value(), str)}
    if not chosen or all(given.key_or_group != "experiment" for given in overrides):
        return
    groups = [given.input_line or "" for given in overrides if _is_group(given.key_or_group)]
    before = _compose([line for line in groups if line.partition("=")[0] not in chosen])
    asked = {given.key_or_group for given in overrides}
    for slot, name in chosen.items():
        former = before[slot]["name"]
        others = set(SLOTS[slot].options(former)) - set(SLOTS[slot].options(name)) if former != name else set()
        for key in others & config[slot].keys():
            if f"{slot}.{key}" not in asked:
                del config[slot][key]


def _parse(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        key, given, value = override.partition("=")
        quoted = f"; a value with signs such as = ( or ü needs quotes inside of the shell's: \"{key}='{value}'\""
        raise AuroraError(f"config: {override!r} is no override such as keep_ratio=0.5 or merge=pool"
                          f"{quoted if given else ''}") from error


def _check_choice(override: Override) -> None:
    """AuroraError for a choice that a group does not have; a part from outside needs no yaml to be chosen."""
    group, name = override.key_or_group, override.value()
    if not _is_group(group) or not isinstance(name, str):
        return
    known = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
    if name in known:
        return
    slot = SLOTS.get(group)
    if slot is None or name not in slot.known():
        raise AuroraError(f"no {group} named {name!r}.{suggest(name, known if slot is None else slot.known())}")
    options = {key: "???" if option.default is inspect.Parameter.empty else option.default
               for key, option in slot.options(name).items() if key not in INJECTED.get(group, ())}
    ConfigStore.instance().store(group=group, name=name, node={"name": name, **options})


def _is_group(key: str) -> bool:
    return bool(key) and (CONFIG_FOLDER / key).is_dir()


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _given(below) for key, below in value.items() if below != "???"}
    return [_given(below) for below in value] if isinstance(value, list) else value


def _readable(error: Exception, overrides: Sequence[Override]) -> str:
    """What is wrong and what would be right, where Hydra only says that a key cannot be overridden."""
    unknown = re.match(r"Could not (?:override|delete) '([^'@]+)'|.*Key '([^']+)' is not in struct", str(error))
    key = unknown and (unknown[1] or unknown[2])
    if not key:
        return "config: " + " ".join(str(error).split())
    tree: Any = _compose([given.input_line or "" for given in overrides if _is_group(given.key_or_group)])
    above: list[str] = []
    for part in key.split("."):
        if not isinstance(tree, dict):
            return f"the config has no {key!r}: {'.'.join(above)} is {tree!r}, which has nothing below it"
        if part not in tree:
            return f"the config has no {'.'.join([*above, part])!r}.{suggest(part, tree)}"
        above, tree = [*above, part], tree[part]
    return "config: " + " ".join(str(error).split())
