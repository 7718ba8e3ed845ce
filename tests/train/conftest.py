from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from imachsr.train.capacity import connect


@pytest.fixture(scope="session")
def own_ray(root: Path) -> Iterator[None]:
    """One Ray of two CPUs for all tests that need one in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))  # workers import the toys
        connect(cpus=2)
    yield
    ray.shutdown()
