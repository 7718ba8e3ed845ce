"""Which revision of the code made a result, where it is under git."""

import os
import subprocess
from pathlib import Path


def revision(folder: Path) -> str | None:
    """The commit that is checked out around a folder, 40 hexadecimal digits, with ``-dirty`` behind it when tracked files have changed since.

    None where there is no commit, or no git.
    """
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def revisions() -> dict[str, str | None]:
    """Those of imachsr itself and of the working directory, where the user's own code and settings are."""
    here = Path(__file__)
    # An installed package may lie in a repository that is not its own.
    is_tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None
    return {"imachsr": revision(here.parent) if is_tracked else None, "folder": revision(Path.cwd())}


def _git(folder: Path, *words: str) -> str | None:
    # A hook, or a command started by git, would name its own repository.
    plain = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "--no-optional-locks", *words], capture_output=True, text=True, timeout=20, env=plain, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
