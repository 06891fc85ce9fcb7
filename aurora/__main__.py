"""`python -m aurora` is the command `aurora`. Processes that a command starts do not import this module again, as they
would one with another name."""

import sys

from aurora.cli import main

if __name__ == "__main__":
    sys.exit(main())
