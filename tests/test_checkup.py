"""What is judged about nodes: from what they said, and on two real nodes that do not share all folders."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr import probe
from imachsr.checkup import compare_builds, compare_versions, judge_clock, judge_nccl, judge_network, networks, resources, versions
from imachsr.cluster import Node, skew
from tests.launch.heads import Head, end, running_head

NODE = Node(id="abcdef0123", address="10.0.0.2", resources={})
HERE = {"python": "3.11.7", "torch": "2.14.1+cpu", "ray": "2.60.0", "imachsr": "0.1.0"}


def test_other_versions_are_errors_and_other_builds_are_not() -> None:
    assert compare_versions(HERE, {**HERE, "torch": "2.14.1+cu128"}, "n") == []
    (found,) = compare_versions(HERE, {**HERE, "torch": "2.13.0", "imachsr": None}, "node 10.0.0.2")
    assert (found.name, found.state) == ("versions on node 10.0.0.2", "error")
    assert found.finding.startswith("torch is 2.13.0, but 2.14.1+cpu here; imachsr is not installed; install requirements.lock there")
    (found,) = compare_versions(HERE, TimeoutError("it does not answer"), "n")
    assert found.finding == "TimeoutError: it does not answer"


@pytest.mark.parametrize(("ahead", "wording"), [(5.0, "5.0 s ahead of this one"), (-3.0, "3.0 s behind this one"), (0.4, None)])
def test_a_clocks_difference_is_bounded_by_every_question(ahead: float, wording: str | None) -> None:
    """Answers that take long widen the bounds, and never make a right clock wrong."""
    samples = [(10.0, 10.0 + ahead + delay / 2, 10.0 + delay) for delay in (8.0, 0.02, 3.0)]
    low, high = skew(samples)
    assert low <= ahead <= high
    assert high - low == pytest.approx(0.02)
    found = judge_clock((low, high), "n")
    assert (found is None) == (wording is None)
    assert wording is None or (found is not None and found.state == "warning" and wording in found.finding and "NTP" in found.finding)


def test_a_clock_that_may_be_right_is_not_blamed() -> None:
    assert judge_clock((-9.0, 9.0), "n") is None


def network(**changed: Any) -> dict[str, Any]:
    return {
        "host": "worker",
        "named": "",
        "nccl": "",
        "address": "10.0.0.2",
        "interfaces": {"lo": "127.0.0.1", "eth1": "10.0.0.2"},
        "seconds": 0.0,
        **changed,
    }


@pytest.mark.parametrize(
    ("seen", "state", "wording"),
    [
        (network(), "ok", "gloo listens on eth1 (10.0.0.2)"),
        (network(address="127.0.1.1"), "warning", "worker is 127.0.1.1, so gloo listens on loopback; set GLOO_SOCKET_IFNAME=eth1 on every node"),
        (network(address=None), "warning", "worker does not resolve, so gloo listens on loopback; set GLOO_SOCKET_IFNAME=eth1 on every node"),
        (network(address="192.168.9.9"), "warning", "worker resolves to 192.168.9.9, which no interface has; mend /etc/hosts, or set GLOO"),
        (network(named="eth1"), "ok", "gloo listens on eth1, as GLOO_SOCKET_IFNAME says"),
        (network(named="ib0"), "error", "GLOO_SOCKET_IFNAME names ib0, but the interfaces are lo, eth1; name one of them"),
    ],
)
def test_gloo_on_loopback_is_told_with_the_interface_to_name(seen: dict[str, Any], state: str, wording: str) -> None:
    found = judge_network(seen, NODE, is_alone=False)
    assert found.state == state
    assert found.finding.startswith(wording)


@pytest.mark.parametrize(
    ("nccl", "state", "wording"),
    [
        ("eth", "ok", "NCCL listens on eth1, as"),
        ("=eth1", "ok", "NCCL listens on eth1, as"),
        ("^lo,docker", "ok", "NCCL listens on eth1, as"),
        ("^=lo", "ok", "NCCL listens on eth1, as"),
        ("=eth", "error", "NCCL_SOCKET_IFNAME==eth leaves none of the interfaces lo, eth1; name one of them"),
        ("ib0,ib1", "error", "NCCL_SOCKET_IFNAME=ib0,ib1 leaves none of the interfaces lo, eth1; name one of them"),
    ],
)
def test_an_interface_that_nccl_would_not_find_is_told(nccl: str, state: str, wording: str) -> None:
    found = judge_nccl(network(nccl=nccl), NODE)
    assert found is not None
    assert (found.state, found.finding.startswith(wording)) == (state, True), found.finding
    assert judge_nccl(network(), NODE) is None


def test_nodes_with_gpus_need_one_build_of_torch_that_uses_them() -> None:
    assert compare_builds({"node a": "2.14.1+cu128", "node b": "2.14.1+cu128", "node c": None}) == []
    (cpu,) = compare_builds({"node a": "2.14.1+cpu", "node b": "2.14.1+cu128"})
    assert (cpu.name, cpu.state) == ("torch build on node a", "error")
    assert cpu.finding == "torch is 2.14.1+cpu, which uses no GPU, but the node has some; install a CUDA build"
    (unlike,) = compare_builds({"node a": "2.14.1+cu126", "node b": "2.14.1+cu128"})
    assert unlike.state == "error"
    assert unlike.finding == "nodes with GPUs must have one build of torch, but have 2.14.1+cu126 on node a, 2.14.1+cu128 on node b; install one"


class Answers:
    """What nodes would say; stands for probes on machines with GPUs."""

    def __init__(self, nodes: list[Node], answers: dict[str, Any]) -> None:
        self.nodes, self.answers = nodes, answers

    def ask(self, name: str, *args: str) -> dict[str, Any]:
        return self.answers


def test_only_nodes_with_gpus_are_asked_about_nccl_and_builds() -> None:
    there = [Node(id="a", address="10.0.0.2", resources={"CPU": 1}), Node(id="b", address="10.0.0.3", resources={"CPU": 1, "GPU": 1})]
    told = networks(Answers(there, {each.id: network(nccl="ib0") for each in there}))  # type: ignore[arg-type]
    assert [(check.name, check.state) for check in told if "NCCL" in check.name] == [("NCCL's network of node 10.0.0.3 (b)", "error")]
    builds = {each.id: {**probe.versions(), "torch": f"{torch.__version__.partition('+')[0]}+cpu"} for each in there}
    assert [check.name for check in versions(Answers(there, builds))] == ["torch build on node 10.0.0.3 (b)"]  # type: ignore[arg-type]


def test_one_node_alone_may_use_the_loopback() -> None:
    assert judge_network(network(address="127.0.0.1"), NODE, is_alone=True).state == "ok"


def test_a_cluster_without_cpus_runs_no_trial() -> None:
    head = Node(id="a", address="10.0.0.1", resources={"memory": 8 * 2**30})
    assert [check.state for check in resources([head])] == ["ok", "error"]
    assert [check.state for check in resources([head, Node(id="b", address="10.0.0.2", resources={"CPU": 8, "memory": 8 * 2**30})])] == ["ok", "ok"]


# Two real nodes; the second one has a file system of its own in one place.


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path, Path]]:
    """The head, a folder that both nodes see, and one that they do not share."""
    if os.geteuid() != 0 or not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace must be possible, which takes root and unshare")
    shared, own = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("own")
    with running_head(cpus=1) as head:
        start = f"mount -t tmpfs none {own} && exec ray start --address={head.address} --num-cpus=1 --dashboard-agent-listen-port=0 --block"
        second = subprocess.Popen(["unshare", "--mount", "sh", "-c", start], env=head.env, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            yield head, shared, own
        finally:
            end(second)


def doctor(head: Head, storage: Path, data: Path) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", "imachsr", "doctor", "--address", head.address, "--storage", str(storage), "--data", str(data), "--json"]
    done = subprocess.run(command, env=head.env, capture_output=True, text=True, timeout=200)
    checks = json.loads(done.stdout)
    assert done.returncode == any(check["state"] == "error" for check in checks)
    return {check["name"]: check for check in checks}


@pytest.mark.slow
def test_a_token_that_is_refused_is_told_as_such_in_one_line(two_nodes: tuple[Head, Path, Path], tmp_path: Path) -> None:
    head, _, _ = two_nodes
    words = ["train", "launch/scenes.yaml", "--workers", "1", "--address", head.address, "--output", str(tmp_path / "run")]
    for own in ({"RAY_AUTH_TOKEN": "a" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        done = subprocess.run([sys.executable, "-m", "imachsr", *words], env={**head.env, **own}, capture_output=True, text=True, timeout=200)
        assert done.returncode == 2
        assert f"error: the cluster at {head.address} must let this process in, but refuses its token: a cluster with tokens needs" in done.stderr
        assert "gcs_client" not in done.stderr


@pytest.mark.slow
def test_a_folder_that_nodes_do_not_share_is_found_and_nothing_is_left_in_it(two_nodes: tuple[Head, Path, Path]) -> None:
    head, shared, own = two_nodes
    (shared / "train").mkdir()
    (own / "train").mkdir()
    subprocess.run(
        ["timeout", "90", "sh", "-c", f"until [ $(ray status --address {head.address} | grep -c node_) = 2 ]; do sleep 1; done"], env=head.env
    )
    good = doctor(head, shared / "runs", shared)
    assert "2 nodes" in good["cluster"]["finding"]
    assert good["storage"]["finding"] == f"{shared} is the same folder on all 2 nodes, and writable"
    for name in ("versions", "data", "clock"):
        assert good[name]["state"] == "ok", good[name]
    bad = doctor(head, own / "runs", own)
    (storage,) = [check for name, check in bad.items() if name.startswith("storage")]
    assert storage["state"] == "error"
    assert f"{own} is another folder there: a file written here does not appear; mount one folder on all nodes" in storage["finding"]
    (data,) = [check for name, check in bad.items() if name.startswith("data")]
    assert (data["state"], "holds other files there; put the data in a folder that all nodes mount" in data["finding"]) == ("error", True)
    assert [path.name for path in shared.iterdir()] == [path.name for path in own.iterdir()] == ["train"]
    script = "import os, sys, pathlib; from imachsr.train.capacity import connect; from imachsr.cluster import require_shared\n"
    script += "connect(); require_shared(pathlib.Path(sys.argv[1])); print('shared', flush=True)\n"
    script += "import ray; from imachsr.cluster import marked, nodes, require_marked\n"
    script += "from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On\n"
    script += "def refusals(folder):\n    with marked(folder) as word:\n"
    script += "        made = ray.remote(max_retries=0)(require_marked)\n"
    script += "        sent = [made.options(scheduling_strategy=On(node.id, soft=False)).remote(folder, word) for node in nodes()]\n"
    script += "        return sum('is another folder' in str(each.exception()) for each in map(lambda one: one.future(), sent) if each.exception())\n"
    script += "print(*map(refusals, map(pathlib.Path, sys.argv[1:])), flush=True); require_shared(pathlib.Path(sys.argv[2]))"
    env = {**head.env, "RAY_ADDRESS": head.address}
    done = subprocess.run([sys.executable, "-c", script, str(shared), str(own)], env=env, capture_output=True, text=True, timeout=200)
    assert done.stdout == "shared\n0 1\n"
    assert "ConfigError: --output must be a folder that all nodes of the cluster share, but on node " in done.stderr
