"""The version, alone in a file so that building the package needs no torch."""

__version__ = "0.1.0"
