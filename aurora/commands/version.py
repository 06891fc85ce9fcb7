import platform
import sys
from importlib.metadata import distributions

from aurora.version import VERSION

SHOWN_PACKAGES = ("torch", "lightning", "transformers", "av", "decord", "webdataset", "hydra-core")


def version() -> None:
    """Show versions.

    Of Aurora, Python, and the packages that results depend on.

    \b
    example:
      aurora version
    """
    installed = {package.name: package.version for package in distributions()}
    lines = [f"aurora {VERSION}", f"python {platform.python_version()}",
             *(f"{package} {installed.get(package, 'not installed')}" for package in SHOWN_PACKAGES)]
    sys.stdout.write("\n".join(lines) + "\n")
