"""W&B for the commands: where rows go, and the dashboard."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imachsr.cli.options import WANDB

if TYPE_CHECKING:
    from imachsr.tracking.events import Combined


def open_tracker(folder: Path, mode: str, project: str, sweep: Mapping[str, Any] | None = None) -> "Combined":
    """Where the rows of a training or a search go; trials belong to a W&B sweep where there is the configuration of one."""
    from imachsr.config.load import one_of
    from imachsr.tracking.background import Background
    from imachsr.tracking.events import Combined
    from imachsr.tracking.preflight import Mode
    from imachsr.tracking.wandb import WandbTracker

    tracker = WandbTracker(folder, project=project, mode=one_of("--wandb", mode, Mode), sweep=sweep)
    return Combined([Background(tracker, hint=f"; to send what is missing: imachsr wandb sync {shlex.quote(str(folder))}")])


def dashboard(folder: Path, mode: str = WANDB) -> list[str]:
    """Make the dashboard of a search that was tracked; lines for the user."""
    from imachsr.report.export import load_confirmation
    from imachsr.tracking.recorded import Place
    from imachsr.tracking.workspace import make

    place = None if mode == "disabled" else Place.of(folder)
    return [] if place is None else make(folder, load_confirmation(folder), place)
