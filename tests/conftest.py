"""What all tests share: options for long ones, the processes they are shared out to, one thread, and real street scenes where there are any."""

import functools
import os
import re
from pathlib import Path
from typing import Any

# Before torch is imported: two cores shared by several processes are slower with a thread pool each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test talks to a W&B server but those that start one themselves.
os.environ["WANDB_MODE"] = "offline"
# COLUMNS and LINES: readline, which pytest loads, sets them for every process that this one starts, and tables would be as narrow as 80 columns.
for name in ("WANDB_API_KEY", "RAY_ADDRESS", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parent.parent
CLUSTERS = re.compile(r"\bown_ray\b|\btests\.launch\.heads\b|\btests\.nodes\b")
"""What files name that start a cluster."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take several seconds, as continuous integration does")
    parser.addoption("--slow", action="store_true", help="run all tests, also those that take minutes")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes where there are two cores; none besides this one for single files, where their start would take longer than it saves."""
    is_small = all("::" in arg or arg.endswith(".py") for arg in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if is_small or cores < 2 else 2


@functools.cache
def starts_cluster(file: str) -> bool:
    return CLUSTERS.search((ROOT / file).read_text()) is not None


class FileByFile(LoadFileScheduling):
    """All tests of a file run in one process, and one process runs all files that start clusters: they share one Ray, or take fixed addresses."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "clusters" if starts_cluster(file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileByFile:
    return FileByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # the longest part is begun first, so that no process ends long after the other
        items.sort(key=lambda item: not starts_cluster(item.nodeid.partition("::")[0]))
    is_all = config.getoption("--slow")
    is_long = is_all or config.getoption("--long")
    for item in items:
        if "slow" in item.keywords and not is_all:
            item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))
        elif "long" in item.keywords and not is_long:
            item.add_marker(pytest.mark.skip(reason="takes long; --long runs it"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch  # not by the process that only shares tests out

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
