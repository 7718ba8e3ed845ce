"""Command lines of documents and job files, read as the command line itself reads them."""

import shlex
from pathlib import Path
from typing import Any

import typer.main

from imachsr.cli import app
from imachsr.config import load_run
from imachsr.search.space import load_search
from imachsr.study.load import load_study


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """Command and its parameters; ends as a mistake would when an option does not exist or a value does not fit."""
    words = shlex.split(line, comments=True)
    words = words[words.index("imachsr") + 1 :]
    command, depth = typer.main.get_group(app).commands[words[0]], 1
    while (inner := getattr(command, "commands", None)) is not None:  # of a group, such as wandb
        command, depth = inner[words[depth]], depth + 1
    name = " ".join(words[:depth])
    return name, command.make_context(name, words[depth:]).params


def check_settings(name: str, params: dict[str, Any], root: Path) -> None:
    """The settings file of a search, a study or a training exists, and takes the overrides."""
    config, overrides = root / params["config"], params["overrides"] or []
    if name == "search":
        load_search(config, overrides)
    elif name == "study":
        load_study(config, overrides)
    else:
        load_run(config, overrides)
