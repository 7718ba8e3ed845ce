import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from tests.tracking.server import Server

KEY = "0123456789abcdef0123456789abcdef01234567"  # of no account


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """The client as on a fresh machine: no key, no settings, and none of this user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SERVICE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID"):
            patch.delenv(name, raising=False)
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
            patch.setenv(name, str(folder / "user" / name.lower()))
        patch.setenv("NETRC", str(folder / "user" / "netrc"))
        patch.setenv("HOME", str(folder / "user"))
        wandb.teardown()  # the client reads the environment once
        yield patch
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)  # where the service of this test was, for whoever comes after it


@contextlib.contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server on this machine, and a key for it."""
    served = Server()
    patch.setenv("WANDB_BASE_URL", served.url)
    patch.setenv("WANDB_API_KEY", KEY)
    yield served
    served.stop()


@pytest.fixture
def own_wandb(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A fresh client."""
    with fresh(tmp_path) as patch:
        yield patch


@pytest.fixture
def server(own_wandb: pytest.MonkeyPatch) -> Iterator[Server]:
    """A fresh client with a server."""
    with serving(own_wandb) as served:
        yield served
