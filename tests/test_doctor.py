import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from imachsr.config.schema import ConfigError
from imachsr.doctor import PACKAGES, Check, diagnose


@pytest.fixture(autouse=True)
def _no_wandb_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def test_a_whole_machine_has_nothing_to_fail() -> None:
    found = by_name(diagnose())
    assert [check for check in found.values() if check.state == "error"] == []
    for name in PACKAGES:
        assert found[name].finding == importlib.metadata.version(name)
    assert all(check.finding for check in found.values())


def test_what_is_looked_at_is_what_the_project_requires(root: Path) -> None:
    required = {Requirement(text.partition(";")[0]).name for text in importlib.metadata.requires("imachsr") or []}
    assert set(PACKAGES) <= required


def test_a_missing_package_fails_and_nothing_that_needs_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imachsr.doctor.PACKAGES", ("torch", "imachsr-no-such-package"))
    found = by_name(diagnose())
    assert list(found) == ["python", "torch", "imachsr-no-such-package"]
    assert found["imachsr-no-such-package"].state == "error"
    assert found["imachsr-no-such-package"].finding == "not installed; pip install -r requirements.lock"


def test_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert by_name(diagnose())["cluster"].finding == "RAY_ADDRESS is 10.0.0.1:6379; --address 10.0.0.1:6379 checks its nodes"
    monkeypatch.delenv("RAY_ADDRESS")
    assert "Ray starts on this machine" in by_name(diagnose())["cluster"].finding


@pytest.mark.parametrize(("mode", "state"), [("online", "ok"), ("offline", "warning"), ("disabled", "warning")])
def test_wandb_is_a_warning_unless_it_is_online(mode: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    found = by_name(diagnose())["W&B"]
    assert (found.state, found.finding) == (state, f"{mode}: WANDB_MODE is {mode}")


def test_sizes_are_those_of_this_machine() -> None:
    found = by_name(diagnose())
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert float(found["memory"].finding.split()[0]) == pytest.approx(memory / 2**20, abs=0.3)
    assert found["CPU"].finding.startswith(f"{os.cpu_count()} cores")


@pytest.mark.long
def test_the_command_fails_when_a_package_is_missing(tmp_path: Path) -> None:
    """In a process of its own, where a package's files are there but its record is not, as after a broken installation."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'optuna':\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-m", "imachsr", "doctor", "--json"], env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stderr == ""
    assert [check["name"] for check in json.loads(found.stdout) if check["state"] == "error"] == ["optuna"]


# Clusters


@pytest.mark.parametrize(
    ("address", "wording"),
    [
        ("head", "--address must be HOST:PORT or auto, but got 'head'; the head's port is 6379 by default"),
        ("head:port", "--address must be HOST:PORT or auto, but got 'head:port'"),
        ("127.0.0.1:1", "nobody listens at 127.0.0.1:1 .*refused.*; start the cluster"),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(address: str, wording: str) -> None:
    found = by_name(diagnose(address))["cluster"]
    assert found.state == "error"
    assert re.match(wording, found.finding)


def test_folders_are_for_clusters_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--storage must go with --address, but got none; --address auto is"):
        diagnose(storage=tmp_path)
    with pytest.raises(ConfigError, match="--data must go with --address"):
        diagnose(data=tmp_path)
