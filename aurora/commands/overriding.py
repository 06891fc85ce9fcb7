"""Overrides for a saved model: those of training, on the config that lies in the model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora.config import ModelConfig


def override(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The config with overrides applied in order."""
    return ModelConfig.parse(config).override(overrides).tree
