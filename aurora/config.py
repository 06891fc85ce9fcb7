"""Composes configs from `configs/` and command-line overrides, into plain containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aurora.errors import AuroraError

_FRAME = Path(__file__).parent
CONFIG_FOLDER = next(path for path in (_FRAME / "configs", _FRAME.parent / "configs") if path.is_dir())
ASSET_FOLDER = _FRAME / "assets"

OmegaConf.register_new_resolver("asset", lambda path: str(ASSET_FOLDER / path), replace=True)


def load_config(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed config: `overrides` are Hydra's, such as `experiment=blocks` or `stages.vision.peak_lr=1e-4`."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("aurora", overrides=list(overrides))
            container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise AuroraError(_readable(error)) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _readable(error: Exception) -> str:
    """The parts of Hydra's message that help: what was asked for and which choices exist."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "config: " + " ".join(lines)
