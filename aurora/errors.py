"""The one exception that speaks to the user: the command line prints it without a traceback."""


class AuroraError(ValueError):
    """Something the user gave is wrong; the message says what was given, what would be right, and where."""
