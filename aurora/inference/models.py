"""Which model is used: a saved one or one of base weights, with overrides, an adapter and rounding."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from aurora.assemble import build_model, load_base_weights
from aurora.config import ASSET_FOLDER, CONFIG_FILE, ModelConfig, load_config, read_config
from aurora.errors import AuroraError
from aurora.model import AuroraModel
from aurora.weights.adapters import apply_adapter
from aurora.weights.model_folder import fill_unsaved_buffers, load_model

SHIPPED = ASSET_FOLDER / "model"
"""The trained tiny model that comes with Aurora, which knows only Blocks world."""


def model_folder(given: str | None) -> Path:
    """The folder given, else the one trained model of this folder, else the shipped one, which a line on standard error
    says. AuroraError that lists them when there are several."""
    if given is not None:
        return Path(given)
    found = sorted(path.parent for path in Path().glob(f"runs/*/language_video/model/{CONFIG_FILE}"))
    if not found:
        sys.stderr.write("no --model and no runs/*/language_video/model here: the tiny model that comes with Aurora "
                         "answers, which knows only Blocks world\n")
        return SHIPPED
    if len(found) > 1:
        raise AuroraError(f"several models are here, choose one with --model: {', '.join(map(str, found))}")
    return found[0]


def saved_model(
    folder: Path, overrides: Sequence[str], *, device: str = "cpu", threads: int | None = None,
    adapter: str | None = None, any_base: bool = False
) -> tuple[AuroraModel, ModelConfig]:
    """A saved model and its config, with overrides; `adapter` is merged into it."""
    use(device, threads)
    if adapter is None:
        return load_model(folder, device=device, overrides=overrides)
    # it is merged into matrices, which are rounded afterwards
    config = read_config(folder).override(overrides)
    model, _ = load_model(folder, device=device, overrides=[*overrides, "quantize=null"])
    apply_adapter(model, adapter, config, any_base=any_base)
    model.backbone.quantize(config.quantize)
    return model, config


def random_model(
    overrides: Sequence[str], *, device: str = "cpu", threads: int | None = None, adapter: str | None = None,
    any_base: bool = False, rounded: bool = True
) -> tuple[AuroraModel, ModelConfig, dict[str, str]]:
    """The model that a config describes, its config, and where the weights of each slot come from; `adapter` is merged
    into it. To be saved, it is not `rounded`: the config says how it is used."""
    use(device, threads)
    config = load_config(*overrides)
    kind = config.model.quantize if rounded else None
    while_reading = kind is not None and adapter is None and config.base_path("backbone") is not None
    model = build_model(config.model, empty_backbone=while_reading)
    if while_reading:
        model.backbone.quantize(kind)
    sources = load_base_weights(model, config)
    fill_unsaved_buffers(model, config.model)
    if adapter is not None:
        apply_adapter(model, adapter, config.model, any_base=any_base)
    if not while_reading:
        model.backbone.quantize(kind)
    return model.to(device).eval(), config.model, sources


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
