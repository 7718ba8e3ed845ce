"""A search's result folder: whose it is, and whether it may be used."""

from pathlib import Path

from imachsr.config.folder import check_own
from imachsr.config.load import load_yaml
from imachsr.config.schema import ConfigError
from imachsr.search.database import FILE, URL_FILE
from imachsr.search.space import Search, make_search, search_to_dict

SETTINGS = "search.yaml"
PLAN = "plan.json"
"""Of a confirmation; written before its search begins."""
CHANGEABLE = ("budget", "name", "confirm")
"""What may differ when a search is continued: how much, not what."""


def holds_search(folder: Path) -> bool:
    """Whether a search has begun in a folder."""
    return (folder / FILE).exists() or (folder / URL_FILE).exists()


def is_known(folder: Path) -> bool:
    """Whether a folder is known to be that of a search or a confirmation, one that has not begun to search too."""
    return holds_search(folder) or (folder / PLAN).exists()


def check_folder(folder: Path, search: Search, *, resume: bool) -> None:
    """Raise ConfigError unless the folder can take the search: a new one, or with ``resume`` the one that is in it."""
    if not holds_search(folder):
        if not is_known(folder):
            check_own(folder)
        return
    if not resume:
        raise ConfigError(f"{folder} must be a new folder, but holds a search; give another --output, or continue it with --resume")
    try:
        began = make_search(load_yaml(folder / SETTINGS))
    except ConfigError as error:
        raise ConfigError(f"{folder / SETTINGS} must be the search that began in the folder, but: {error}") from None
    before, now = search_to_dict(began), search_to_dict(search)
    changed = [key for key in {**before, **now} if key not in CHANGEABLE and before.get(key) != now.get(key)]
    if changed:
        raise ConfigError(f"a search must be continued as it began, but {', '.join(changed)} changed against {folder / SETTINGS}")
