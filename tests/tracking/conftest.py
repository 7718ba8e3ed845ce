from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from tests.tracking.server import Server

KEY = "0123456789abcdef0123456789abcdef01234567"  # of no account


@pytest.fixture
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client as on a fresh machine: no key, no settings, and none of this user's folders."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SERVICE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "user" / name.lower()))
    monkeypatch.setenv("NETRC", str(tmp_path / "user" / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    wandb.teardown()  # the client reads the environment once
    yield
    wandb.teardown()


@pytest.fixture
def server(own_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server on this machine, and a key for it."""
    served = Server()
    monkeypatch.setenv("WANDB_BASE_URL", served.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield served
    served.stop()
