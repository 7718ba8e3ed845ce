"""A sweep in W&B that draws nothing: trials belong to it for the views that only sweeps have."""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imachsr.files import write_text
from imachsr.tracking.preflight import KEY

FILE = "wandb-sweep"


def held(folder: Path) -> str:
    """Id of a result folder's sweep; "" where there is none."""
    path = folder / FILE
    return path.read_text() if path.exists() else ""


def begun(folder: Path, sweep: Mapping[str, Any], *, project: str, key: str | None) -> str:
    """Id of a result folder's sweep, which is made where there is none yet.

    Args:
        folder: Result folder, which keeps the id.
        sweep: Its configuration.
        project: Of W&B.
        key: That the environment has not; None when the client finds one by itself.
    """
    import wandb

    if not held(folder):
        if key is not None:
            os.environ[KEY] = key  # the client offers no other way for this call
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = str(wandb.sweep(dict(sweep), project=project))
        finally:
            if key is not None:
                os.environ.pop(KEY, None)
        write_text(folder / FILE, found)
    return held(folder)
