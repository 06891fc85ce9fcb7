"""Which model a command uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aurora.adapters.folder import apply_adapter
from aurora.assemble import build_model, load_base_weights
from aurora.checkpoint import CONFIG_FILE, load_model, read_config
from aurora.commands.overriding import override
from aurora.config import load_config
from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.precision import quantize

TRAINED = f"runs/*/language_video/model/{CONFIG_FILE}"


def model_folder(given: str | None) -> Path:
    """The folder given, or the one trained model of this folder. AuroraError that lists them when there are several."""
    if given is not None:
        return Path(given)
    found = sorted(path.parent for path in Path().glob(TRAINED))
    if not found:
        raise AuroraError("no model: give --model FOLDER (there is no runs/*/language_video/model here, which "
                          "`aurora train` writes)")
    if len(found) > 1:
        raise AuroraError(f"several models are here, choose one with --model: {', '.join(map(str, found))}")
    return found[0]


def saved_model(
    folder: Path, overrides: Sequence[str], *, device: str = "cpu", threads: int | None = None,
    adapter: str | None = None, any_base: bool = False
) -> tuple[AuroraModel, dict[str, Any]]:
    """A saved model and its config, with overrides; `adapter` is merged into it."""
    use(device, threads)
    model, config = load_model(folder, device=device, overrides=override(read_config(folder), overrides))
    if adapter is not None:
        apply_adapter(model, adapter, config, any_base=any_base)
    quantize(model.backbone, config.get("quantize"))
    return model, config


def random_model(
    overrides: Sequence[str], *, device: str = "cpu", threads: int | None = None, adapter: str | None = None,
    any_base: bool = False
) -> tuple[AuroraModel, dict[str, Any], dict[str, str]]:
    """The model that a config describes, its config, and where the weights of each slot come from; `adapter` is merged
    into it."""
    use(device, threads)
    config = load_config(overrides)
    model = build_model(config)
    sources = load_base_weights(model, config)
    if adapter is not None:
        apply_adapter(model, adapter, config, any_base=any_base)
    quantize(model.backbone, config.get("quantize"))
    return model.to(device).eval(), config, sources


def use(device: str, threads: int | None) -> None:
    """Sets the number of threads. AuroraError for a device that is not here."""
    if threads is not None:
        if threads < 1:
            raise AuroraError(f"--threads {threads} leaves nothing to run on; give 1 or more")
        torch.set_num_threads(threads)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AuroraError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
