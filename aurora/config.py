"""Composes configs from `configs/` and command-line overrides, into plain containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aurora.errors import AuroraError

_FRAME = Path(__file__).parent
CONFIG_FOLDER = next(path for path in (_FRAME / "configs", _FRAME.parent / "configs") if path.is_dir())
ASSET_FOLDER = _FRAME / "assets"

OmegaConf.register_new_resolver("asset", lambda path: str(ASSET_FOLDER / path), replace=True)


def load_config(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed config: `overrides` are Hydra's, such as `experiment=blocks` or `stages.vision.peak_lr=1e-4`.

    What a yaml leaves to the user (`???`) and nobody gave is absent: whoever needs it says so, and a command that
    does not need it works without.
    """
    GlobalHydra.instance().clear()
    _check_syntax(overrides)
    try:
        with initialize_config_dir(config_dir=str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("aurora", overrides=list(overrides))
            container = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise AuroraError(_readable(error)) from error
    assert isinstance(container, dict)
    given: dict[str, Any] = _given(container)
    return given


def _check_syntax(overrides: Sequence[str]) -> None:
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except HydraException as error:
            raise AuroraError(f"config: {override!r} is no override such as keep_ratio=0.5 or merge=pool") from error


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _given(below) for key, below in value.items() if below != "???"}
    return [_given(below) for below in value] if isinstance(value, list) else value


def _readable(error: Exception) -> str:
    """The parts of Hydra's message that help: what was asked for and which choices exist."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "config: " + " ".join(lines)
