import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.conftest import own_ray

__all__ = ["own_ray"]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is to be had: a study commits to its file hundreds of times in a test, and each waits for the disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="imachsr-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
