"""Training over two nodes in network namespaces: one is lost, cut off, or taken away with notice."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.train import checkpoint
from tests.nodes import Nodes, require_namespaces
from tests.train.toys import toy_run
from tests.train.wounds import SETTINGS, STEPS_AN_EPOCH, steps, wait_until, wounded

pytestmark = pytest.mark.slow
LONG_S = 420.0
"""Longest time for anything here; most takes a tenth of it on an idle machine."""
Tell = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return line


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    require_namespaces()
    with Nodes(2) as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """Two, both well."""
    cluster.mend(1)
    if cluster.alive() < 2:
        cluster.kill(1)
        wait_until(lambda: cluster.alive() == 1, seconds=LONG_S, what="the head's notice of a lost node")
        cluster.start(1)
    return cluster


class Training:
    """`imachsr train` on the head, whose output is read from a file while it runs."""

    def __init__(self, nodes: Nodes, folder: Path, root: Path, workers: str, **settings: Any) -> None:
        self.output, self.log, self.said = folder / "run", folder / "steps", folder / "said"
        model = wounded(log=str(self.log), pause=settings.pop("pause", 0.5))
        (folder / "run.yaml").write_text(dump_yaml(run_to_dict(toy_run(**{**SETTINGS, **settings}, model=model))))
        command = [sys.executable, "-m", "imachsr", "train", str(folder / "run.yaml"), "--output", str(self.output), "--wandb", "disabled"]
        with self.said.open("w") as said:
            self.process = nodes.popen(
                0,
                [*command, "--workers", workers, "--address", nodes.address],
                env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
                cwd=folder,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def until(self, condition: Callable[[], object], what: str) -> float:
        def now() -> object:
            assert condition() or self.process.poll() is None, f"{what} must come, but the training ended: {self.said.read_text()}"
            return condition()

        return wait_until(now, seconds=LONG_S, what=f"{what}, after {self.said.read_text()!r},")

    def has_said(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.said.read_text())

    def end(self) -> int:
        self.process.wait(timeout=LONG_S)
        return self.process.returncode


@contextlib.contextmanager
def training(nodes: Nodes, folder: Path, root: Path, workers: str, **settings: Any) -> Iterator[Training]:
    made = Training(nodes, folder, root, workers, **settings)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(timeout=60)


def epochs(output: Path) -> int:
    return len((output / "metrics.jsonl").read_text().splitlines())


def test_fixed_workers_wait_for_a_node_whose_raylet_was_killed_and_go_on_when_another_has_come(
    nodes: Nodes, tmp_path: Path, root: Path, tell: Tell
) -> None:
    with training(nodes, tmp_path, root, "2") as run:
        run.until(lambda: steps(run.log) >= 4, "four steps")
        nodes.kill_raylet(1)
        lost = time.monotonic()
        run.until(
            lambda: run.has_said("a worker was lost; waiting up to 300 s for 2 of the workers to start; the cluster has room for 1"), "word of it"
        )
        noticed = time.monotonic() - lost
        nodes.kill(1)
        back = time.monotonic()
        nodes.start(1)
        run.until(lambda: run.has_said(r"2 workers go on after step"), "the restart")
        gone_on = time.monotonic()
        assert run.end() == 0, run.said.read_text()
    assert not run.has_said("raylet|state-dump"), "what daemons say is for a file"
    again = steps(run.log) - 2 * STEPS_AN_EPOCH
    tell(
        f"raylet killed, two workers: told after {noticed:.1f} s; going on {gone_on - back:.1f} s after a node was started; {again} steps done again"
    )
    assert again <= 1
    assert epochs(run.output) == 2


def test_fixed_workers_end_with_a_clear_message_when_the_node_stays_away(nodes: Nodes, tmp_path: Path, root: Path, tell: Tell) -> None:
    with training(nodes, tmp_path, root, "2", recovery__wait_minutes=0.4) as run:
        run.until(lambda: steps(run.log) >= 3, "three steps")
        nodes.cut(1)
        cut = time.monotonic()
        assert run.end() == 1, run.said.read_text()
        tell(f"cable pulled, two workers, a wait of 24 s: ended after {time.monotonic() - cut:.1f} s")
        assert run.has_said(
            r"failed: the cluster must have free room for 2 workers \(CPU each\), but had not for recovery.wait_minutes=0.4; its nodes hold 1; "
            "the last checkpoint is kept, --resume goes on from it"
        ), run.said.read_text()
        assert (found := run.has_said("to go on: (imachsr train .*--resume)"))
        assert "--workers" in shlex.split(found[1])
    assert checkpoint.load(run.output)["step"] >= 2


def test_elastic_workers_go_on_with_what_is_left_when_a_cable_is_pulled(nodes: Nodes, tmp_path: Path, root: Path, tell: Tell) -> None:
    with training(nodes, tmp_path, root, "1:2") as run:
        run.until(lambda: steps(run.log) >= 4, "four steps")
        nodes.cut(1)
        cut = time.monotonic()
        run.until(lambda: run.has_said("1 worker goes on after step"), "the restart")
        seconds = time.monotonic() - cut
        assert run.end() == 0, run.said.read_text()
    again = steps(run.log) - 2 * STEPS_AN_EPOCH
    tell(f"cable pulled, one to two workers: going on with one after {seconds:.1f} s; {again} steps done again")
    assert again <= 1
    assert epochs(run.output) == 2


def test_a_node_that_is_taken_away_with_notice_has_a_checkpoint_saved_before_it_goes(nodes: Nodes, tmp_path: Path, root: Path, tell: Tell) -> None:
    grace_s = 20
    # No checkpoint but the one that the notice asks for.
    with training(
        nodes, tmp_path, root, "1:2", recovery__checkpoint_steps=None, pause=1.0, data__kwargs={"count": 8 * 60}, optimizer__epochs=1
    ) as run:
        run.until(lambda: steps(run.log) >= 4, "four steps")
        assert not checkpoint.exists(run.output)
        nodes.drain(1, seconds=grace_s)
        told = time.monotonic()
        run.until(lambda: checkpoint.exists(run.output), "a checkpoint")
        seconds = time.monotonic() - told
        assert seconds < grace_s
        run.until(lambda: run.has_said(r"a node of the cluster will be taken away in 1\d s: saving a checkpoint"), "word of it")
        time.sleep(max(0.0, told + grace_s - time.monotonic()))
        nodes.kill(1)
        run.until(lambda: run.has_said("a node was taken away: 1 worker goes on after step"), "the restart")
        went_on = time.monotonic() - told - grace_s
        assert run.end() == 0, run.said.read_text()
    again = steps(run.log) - 60
    tell(f"notice of {grace_s} s: checkpoint after {seconds:.1f} s, going on {went_on:.1f} s after the node was gone; {again} steps done again")
    assert again <= grace_s + 5
    assert json.loads((run.output / "summary.json").read_text())["epochs"] == 1
