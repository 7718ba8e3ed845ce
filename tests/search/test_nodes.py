"""A search over two nodes in network namespaces, one of which is lost while trials run on both."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.train import checkpoint
from tests.nodes import Nodes, require_namespaces
from tests.train.toys import toy_run
from tests.train.wounds import wait_until

pytestmark = pytest.mark.slow
LONG_S = 420.0
EPOCHS, TRIALS = 4, 5


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    require_namespaces()
    with Nodes(2) as made:
        yield made


def trials_on(nodes: Nodes, number: int) -> set[int]:
    """Processes of trials on a node."""
    found = subprocess.run(["ip", "netns", "pids", nodes.namespace(number)], capture_output=True, text=True, check=True)
    named = {int(pid): Path(f"/proc/{pid}/cmdline") for pid in found.stdout.split()}
    return {pid for pid, path in named.items() if path.exists() and "ImplicitFunc" in path.read_text()}


def search_file(folder: Path) -> Path:
    run = toy_run(
        data__kwargs={"count": 64},
        optimizer__batch_size=8,
        optimizer__epochs=EPOCHS,
        model={"import": "tests.search.slow:Slow", "pause": 0.25},
    )
    search: dict[str, Any] = {
        "run": {key: part for key, part in run_to_dict(run).items() if key not in ("name", "seed")},
        "space": {"method.alpha": {"float": [0.1, 1.0]}},
        "arms": [{"name": "baseline", "set": {"method.alpha": 0, "method.beta": 0}}],
        "scheduler": {"kind": "none"},
        "budget": {"trials": TRIALS},
    }
    path = folder / "search.yaml"
    path.write_text(dump_yaml(search))
    return path


def lines(output: Path) -> list[dict[str, Any]]:
    path = output / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("storage", [False, True])
def test_a_node_is_lost_in_the_middle_and_nothing_of_the_search(nodes: Nodes, tmp_path: Path, root: Path, *, storage: bool) -> None:
    output, said = tmp_path / "out", tmp_path / "said"
    command = [sys.executable, "-m", "imachsr", "search", str(search_file(tmp_path)), "--output", str(output), "--wandb", "disabled"]
    command += ["--address", nodes.address, *(["--storage", f"file://{tmp_path / 'kept'}"] if storage else [])]
    with said.open("w") as file:
        environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        driver = nodes.popen(0, command, env=environment, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
    try:

        def is_there(condition: bool) -> bool:
            assert driver.poll() is None, said.read_text()
            return condition

        wait_until(lambda: is_there(bool(trials_on(nodes, 0)) and bool(trials_on(nodes, 1))), seconds=LONG_S, what="trials on both nodes")
        wait_until(lambda: is_there(len({line["trial"] for line in lines(output)}) >= 2), seconds=LONG_S, what="epochs of two trials")
        known = Counter((line["trial"], line["epoch"]) for line in lines(output))
        nodes.kill(1)
        time.sleep(5)
        nodes.start(1)
        assert driver.wait(timeout=LONG_S) == 0, said.read_text()
    finally:
        driver.kill()
        driver.wait(timeout=60)
    assert "2 trials at a time" in said.read_text()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["finished"]
    assert [trial["state"] for trial in summary["trials"]] == ["COMPLETE"] * TRIALS
    found = Counter((line["trial"], line["epoch"]) for line in lines(output))
    assert found == Counter((trial, epoch) for trial in range(TRIALS) for epoch in range(1, EPOCHS + 1))  # each once
    assert known <= found
    if storage:
        kept = {path.name for path in (tmp_path / "kept").iterdir()}
        assert {"search.yaml", "study.sqlite3", "trials.jsonl", "summary.json", "trials"} <= kept
        assert (tmp_path / "kept" / "summary.json").read_text() == (output / "summary.json").read_text()
        assert all(list((tmp_path / "kept" / "trials" / f"{number:04d}" / checkpoint.FOLDER).glob("*.json")) for number in range(TRIALS))
    else:
        assert all(checkpoint.exists(output / "trials" / f"{number:04d}") for number in range(TRIALS))
