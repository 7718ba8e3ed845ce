"""Jobs on a real cluster, with a token: through the script that a user types."""

import hashlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.heads import BIN, Head, running_head

ROOT = Path(__file__).parent.parent.parent
SECRET = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files, in a folder whose environment counts as installed."""
    folder = tmp_path_factory.mktemp("a project") / "it"
    folder.mkdir()
    for name in ("imachsr", "launch", "search_spaces"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml", "cluster.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(BIN)
    stamp = hashlib.sha256((folder / "requirements.lock").read_bytes() + (folder / "pyproject.toml").read_bytes()).hexdigest()
    (folder / ".venv/installed").write_text(stamp + "\n")
    return folder


def cluster(project: Path, head: Head, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", "launch/cluster.sh", *args]
    environment = {**head.env, "RAY_API_SERVER_ADDRESS": head.api, **env}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=500)


def test_a_search_is_submitted_and_ends_and_the_wandb_key_stays_at_home(head: Head, project: Path, tmp_path: Path) -> None:
    output = tmp_path / "a result"
    settings = ["--trials", "1", "--concurrency", "1", "run.optimizer.epochs=3", "run.data.num_train=64"]
    done = cluster(project, head, "submit", "search_spaces/quickstart.yaml", "--output", str(output), *settings, WANDB_API_KEY=SECRET)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((output / "summary.json").read_text())
    assert summary["finished"]
    assert [trial["state"] for trial in summary["trials"]] == ["COMPLETE"]
    job = done.stderr.split("== job ")[1].split(":")[0]
    assert "WANDB_API_KEY stays here" in done.stderr
    assert "succeeded" in done.stdout
    # What people ask for afterwards.
    assert "mIoU" in cluster(project, head, "logs", job).stdout
    status = cluster(project, head, "status").stdout
    assert job in status
    assert "ALIVE" in status
    texts = [path for path in [*head.folder.rglob("*"), *output.rglob("*")] if path.is_file() and not path.is_symlink()]
    assert len(texts) > 20
    assert [path for path in texts if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in status + done.stdout + done.stderr


def test_without_the_token_nothing_is_let_in(head: Head, project: Path, tmp_path: Path) -> None:
    for token, code in ((None, 401), ("0" * 64, 403)):
        request = urllib.request.Request(f"{head.api}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == code
    for name, env in (("none", {}), ("wrong", {"RAY_AUTH_TOKEN": "0" * 64})):
        (tmp_path / name).mkdir()
        done = cluster(project, head, "submit", "search_spaces/quickstart.yaml", "--output", str(tmp_path / "x"), HOME=str(tmp_path / name), **env)
        assert done.returncode != 0
        assert "token" in done.stderr.lower()
    assert not (tmp_path / "x").exists()


def test_the_dashboard_listens_on_the_loopback_only(head: Head) -> None:
    from imachsr.probe import interfaces

    port = int(head.api.rpartition(":")[2])
    outside = [address for address in interfaces().values() if not address.startswith("127.")]
    for address in outside:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, port), timeout=5)
