import re
from pathlib import Path

import pytest

from imachsr.config.load import dump_yaml
from imachsr.config.schema import ConfigError
from imachsr.files import LOCK
from imachsr.search.database import FILE, URL_FILE
from imachsr.search.folder import PLAN, SETTINGS, check_folder, holds_search
from imachsr.search.space import search_to_dict
from tests.search.play import toy_driver, toy_search


def begun(folder: Path) -> None:
    (folder / SETTINGS).write_text(dump_yaml(search_to_dict(toy_search())))
    (folder / FILE).touch()


def test_a_folder_holds_a_search_once_its_study_has_begun(tmp_path: Path) -> None:
    assert not holds_search(tmp_path)
    (tmp_path / SETTINGS).write_text("anything: 1\n")
    with pytest.raises(ConfigError, match=f"must be a new folder, but holds {SETTINGS}; give another --output"):
        check_folder(tmp_path, toy_search(), resume=False)
    (tmp_path / LOCK).touch()  # what a driver leaves that dies at once
    assert not holds_search(tmp_path)
    check_folder(tmp_path, toy_search(), resume=False)
    (tmp_path / URL_FILE).touch()
    assert holds_search(tmp_path)
    with pytest.raises(ConfigError, match="must be a new folder, but holds a search; give another --output, or continue it with --resume"):
        check_folder(tmp_path, toy_search(), resume=False)


def test_a_confirmation_that_has_only_its_plan_is_one(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text("{}")
    check_folder(tmp_path, toy_search(), resume=False)
    toy_driver(tmp_path).close()
    assert holds_search(tmp_path)


def test_only_how_much_and_the_name_may_change(tmp_path: Path) -> None:
    begun(tmp_path)
    check_folder(tmp_path, toy_search(), resume=True)
    check_folder(tmp_path, toy_search(budget={"trials": 99, "hours": 1.0}, name="renamed"), resume=True)
    changed = toy_search(scheduler={"kind": "none"}, space={"x": {"float": [0.0, 2.0]}}, seeds=[1])
    with pytest.raises(
        ConfigError, match=re.escape(f"must be continued as it began, but space, seeds, scheduler changed against {tmp_path / SETTINGS}")
    ):
        check_folder(tmp_path, changed, resume=True)


def test_what_was_left_out_in_the_file_is_what_it_is_by_default(tmp_path: Path) -> None:
    begun(tmp_path)
    whole = search_to_dict(toy_search())
    # As a version wrote it that did not have these yet.
    (tmp_path / SETTINGS).write_text(dump_yaml({key: part for key, part in whole.items() if key not in ("limits", "also", "constraints", "points")}))
    check_folder(tmp_path, toy_search(), resume=True)


def test_settings_that_cannot_be_read_are_told_with_their_file(tmp_path: Path) -> None:
    begun(tmp_path)
    for text in ("space: [", "space: {x: {float: [1, 0]}}\n", ""):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path / SETTINGS))):
            check_folder(tmp_path, toy_search(), resume=True)
