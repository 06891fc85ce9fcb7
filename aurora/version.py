"""The version of the distribution `auroralong`."""

VERSION = "0.1.0"
