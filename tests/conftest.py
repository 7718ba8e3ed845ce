"""What all tests share: the --slow option, one thread, and the real street scenes where they are to be had."""

import os
from pathlib import Path

# Before torch is imported: two cores shared by several processes are slower with a thread pool each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test talks to a W&B server but those that start one themselves.
os.environ["WANDB_MODE"] = "offline"
for name in ("WANDB_API_KEY", "RAY_ADDRESS"):
    os.environ.pop(name, None)

import pytest
import torch

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Real street video; the test is skipped without it."""
    path = os.environ.get("IMACHSR_CAMVID")
    if not path:
        pytest.skip("IMACHSR_CAMVID must name CamVid's folder")
    return Path(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded data of tests does not end up in the user's cache; one folder serves the whole run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
