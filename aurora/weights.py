"""Files of weights for parts that other packages bring: read and written, with the same errors, as our own parts'."""

from __future__ import annotations

from torch import nn

from aurora.registry import import_part


def load(module: nn.Module, path: str) -> None:
    """Fills a module from a `.safetensors` or `.pth` file of its own names and shapes; all of it or nothing."""
    files = import_part("components.backbone._checkpoint")
    files.fill(module, files.read_tensors(path), path)


def save(module: nn.Module, path: str) -> None:
    """Writes what `load` reads: `.safetensors` or `.pth` by the ending of the path."""
    import_part("components.backbone._checkpoint").write_tensors(module.state_dict(), path)
