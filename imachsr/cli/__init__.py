"""The command line: layers, settings, train, search, confirm, report, export, export-model, evaluate, audit, doctor."""

from imachsr.cli.entry import app, main

__all__ = ["app", "main"]
