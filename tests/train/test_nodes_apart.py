"""Training over nodes that share no folder, with a storage: the node of the first worker is lost."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.train import checkpoint
from tests.nodes import Nodes, require_namespaces
from tests.stores import BUCKET, KEYS, PROGRAM
from tests.train.toys import toy_run
from tests.train.wounds import SETTINGS, STEPS_AN_EPOCH, steps, wait_until, wounded

pytestmark = pytest.mark.slow
LONG_S = 300.0
HEAD = "10.97.0.10"


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    found = tmp_path / "disk"
    found.mkdir()
    return found


@pytest.fixture
def nodes(apart: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head without CPUs, and two nodes whose disks are their own."""
    require_namespaces()
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with Nodes(3, head_cpus=0, apart=apart) as made:
        yield made


@pytest.fixture
def endpoint(nodes: Nodes) -> str:
    server = nodes.popen(0, [sys.executable, str(PROGRAM), HEAD, "0", BUCKET], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    return f"http://{HEAD}:{int(server.stdout.readline())}"


def first_worker(nodes: Nodes, log: Path) -> int:
    """The node on which the first worker made its last step."""
    last = [line.split() for line in log.read_text().splitlines() if line.startswith("0 ")][-1]
    for number in (1, 2):
        pids = subprocess.run(["ip", "netns", "pids", nodes.namespace(number)], capture_output=True, text=True, check=True).stdout.split()
        if last[2] in pids:
            return number
    raise AssertionError(f"process {last[2]} is on no node")


def test_the_node_of_the_first_worker_is_lost_and_another_goes_on_from_the_storage(
    nodes: Nodes, apart: Path, endpoint: str, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, said, output = tmp_path / "steps", tmp_path / "said", apart / "run"
    (tmp_path / "run.yaml").write_text(dump_yaml(run_to_dict(toy_run(**SETTINGS, model=wounded(log=str(log), pause=1.0)))))
    command = [sys.executable, "-m", "imachsr", "train", str(tmp_path / "run.yaml"), "--output", str(output), "--wandb", "disabled"]
    command += ["--workers", "1:2", "--address", nodes.address, "--storage", f"s3://{BUCKET}/run"]
    with said.open("w") as out:
        training = nodes.popen(
            0,
            command,
            env={**KEYS, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "AWS_ENDPOINT_URL_S3": endpoint},
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:

        def until(condition: object, what: str) -> float:
            def now() -> object:
                assert callable(condition)
                assert condition() or training.poll() is None, f"{what} must come, but: {said.read_text()}"
                return condition()

            return wait_until(now, seconds=LONG_S, what=f"{what}, after {said.read_text()!r},")

        until(lambda: steps(log) >= 5, "five steps")
        assert not checkpoint.exists(output), "the driver's disk is not that of the workers"
        lost = first_worker(nodes, log)
        nodes.kill(lost)
        at = time.monotonic()
        until(lambda: re.search(r"1 worker goes on after step (\d+)", said.read_text()), "the restart")
        seconds = time.monotonic() - at
        training.wait(timeout=LONG_S)
        text = said.read_text()
        assert training.returncode == 0, text
    finally:
        training.kill()
        training.wait(timeout=60)
    gone_on = re.search(r"1 worker goes on after step (\d+)", text)
    assert gone_on is not None
    assert int(gone_on[1]) >= 1, "it began anew"
    again = steps(log) - 2 * STEPS_AN_EPOCH
    assert again <= 3
    assert re.search(rf"s3://{BUCKET}/run holds the checkpoint of step {2 * STEPS_AN_EPOCH}, and all files", text)
    assert not re.search("key-of-tests|secret-of-tests", text)
    # What was made elsewhere has come home.
    assert checkpoint.load(output)["step"] == 2 * STEPS_AN_EPOCH
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    for folder, _, files in os.walk(output):
        for file in files:
            assert b"secret-of-tests" not in (Path(folder) / file).read_bytes()
    with capsys.disabled():
        print(f"\nthe first worker's node killed, no shared folder: going on after {seconds:.1f} s; {again} steps done again")
