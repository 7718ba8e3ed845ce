"""Which revision made a result: of real repositories."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imachsr import revision as module
from imachsr.revision import revision, revisions


def git(at: Path, *words: str) -> str:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(["git", "-C", str(at), *words], capture_output=True, text=True, check=True, env={**os.environ, **who})
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    at = tmp_path / "mine"
    (at / "inner").mkdir(parents=True)
    git(tmp_path, "init", "-q", str(at))
    (at / "inner/model.py").write_text("x = 1\n")
    git(at, "add", ".")
    git(at, "commit", "-q", "-m", "first")
    return at


def test_a_revision_is_the_commit_and_whether_the_files_are_still_those(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert revision(repository / "inner") == commit
    git(repository, "tag", "v1")
    assert revision(repository) == commit  # not its name, which may move
    (repository / "new.txt").write_text("results lie here too\n")
    assert revision(repository) == commit
    (repository / "inner/model.py").write_text("x = 2\n")
    assert revision(repository) == f"{commit}-dirty"


def test_where_there_is_no_commit_there_is_no_revision(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q", "empty")
    assert revision(tmp_path / "empty") is None
    assert revision(tmp_path / "none") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("git") is None
    assert revision(repository) is None


def test_an_installed_package_does_not_take_the_revision_around_it_for_its_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment often lies in the user's repository."""
    installed = repository / "venv/imachsr/revision.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(module, "__file__", str(installed))
    monkeypatch.chdir(repository / "inner")
    assert revisions() == {"imachsr": None, "folder": git(repository, "rev-parse", "HEAD")}
    git(repository, "add", "venv")
    git(repository, "commit", "-q", "-m", "a copy of it")
    assert revisions()["imachsr"] == git(repository, "rev-parse", "HEAD")


def test_another_repository_in_the_environment_is_not_meant(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git sets it for hooks and for what is started by them."""
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    found = revision(repository)
    monkeypatch.delenv("GIT_DIR")
    assert found == git(repository, "rev-parse", "HEAD")
