"""`aurora version`."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from aurora.version import VERSION

SHOWN_PACKAGES = ("torch", "lightning", "transformers", "av", "decord", "webdataset", "hydra-core")


def version() -> None:
    """Show versions.

    Of Aurora, Python, and the packages that results depend on.

    \b
    example:
      aurora version
    """
    lines = [f"aurora {VERSION}", f"python {platform.python_version()}"]
    for package in SHOWN_PACKAGES:
        try:
            lines.append(f"{package} {installed(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    sys.stdout.write("\n".join(lines) + "\n")
