"""A search's bookkeeping in a storage: brought to another machine, and never overwritten by an older one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from imachsr.config.schema import ConfigError
from imachsr.search.database import URL_FILE
from imachsr.search.mirror import FolderMirror, fetch, refuse_older
from imachsr.train.courier import Courier, connect


@pytest.fixture
def courier(tmp_path: Path) -> Iterator[Courier]:
    found = connect(str(tmp_path / "there"))
    yield found
    found.close()


def search(folder: Path, *epochs: int, study: str = URL_FILE) -> Path:
    """A folder as a search leaves it, its study in a database elsewhere."""
    folder.mkdir(exist_ok=True)
    (folder / "search.yaml").write_text("name: streets\n")
    (folder / study).write_text("postgresql://user@host/name search-1\n")
    (folder / "summary.json").write_text(json.dumps({"trials": [{"number": number, "epochs": each} for number, each in enumerate(epochs)]}))
    return folder


def uploaded(courier: Courier, folder: Path) -> None:
    mirror = FolderMirror(courier, folder)
    mirror._round()
    assert not mirror._why


def test_a_search_whose_study_is_in_a_database_is_brought_with_its_place(courier: Courier, tmp_path: Path) -> None:
    here = search(tmp_path / "here", 3, 2)
    uploaded(courier, here)
    fetch(courier, tmp_path / "new")
    assert (tmp_path / "new" / URL_FILE).read_text() == (here / URL_FILE).read_text()
    assert (tmp_path / "new/summary.json").read_text() == (here / "summary.json").read_text()


def test_a_storage_without_a_study_is_refused(courier: Courier, tmp_path: Path) -> None:
    uploaded(courier, search(tmp_path / "here", 1, study="notes"))
    with pytest.raises(ConfigError, match="must hold a search to go on with, but has no study.sqlite3"):
        fetch(courier, tmp_path / "new")


@pytest.mark.parametrize(("epochs", "lacking"), [((3, 2, 1), "1 of its 3"), ((4, 2), "1 of its 2"), ((4, 3, 1), "3 of its 3")])
def test_a_folder_that_lacks_what_its_storage_has_is_not_gone_on_with(
    courier: Courier, tmp_path: Path, epochs: tuple[int, ...], lacking: str
) -> None:
    uploaded(courier, search(tmp_path / "elsewhere", *epochs))
    here = search(tmp_path / "here", 3, 2)
    with pytest.raises(ConfigError, match=f"must hold all that .* does, but lacks epochs of {lacking} trials: the search was continued elsewhere"):
        refuse_older(courier, here)
    assert sorted(path.name for path in here.iterdir()) == sorted(["search.yaml", "summary.json", URL_FILE])


def test_a_folder_that_has_all_or_more_goes_on(courier: Courier, tmp_path: Path) -> None:
    refuse_older(courier, search(tmp_path / "first", 1))  # nothing is there yet
    uploaded(courier, search(tmp_path / "elsewhere", 3, 1))
    refuse_older(courier, search(tmp_path / "here", 3, 2, 1))
