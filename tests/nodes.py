"""Ray nodes that are really apart: each in a network namespace of its own, joined by a bridge whose cables can be cut."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest

PORT = 6379
RAY = str(Path(sys.executable).with_name("ray"))
START_S = 180.0
"""Longest start of a node, seconds."""


def require_namespaces() -> None:
    """Skip the test where no namespace can be made."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 must be installed for nodes that are apart")
    made = subprocess.run(["ip", "netns", "add", f"try{os.getpid()}"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces must be allowed for nodes that are apart, but: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "delete", f"try{os.getpid()}"], check=True)


class Nodes:
    """Up to ``count`` nodes of one CPU each; number 0 is the head, and the driver's. ``apart`` is a folder that is a disk of each node's own.

    Everything lies in namespaces and one temporary folder, and ends with the ``with`` block: every process in a namespace by its id.
    """

    def __init__(self, count: int, *, head_cpus: int = 1, apart: Path | None = None) -> None:
        self._name = f"im{os.getpid()}"
        self._count, self._head_cpus, self._apart = count, head_cpus, apart
        self._started: list[subprocess.Popen[str]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="im", dir="/tmp"))  # short: a socket's path has 107 characters
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "GLOO_SOCKET_IFNAME": "eth0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }

    @property
    def address(self) -> str:
        """The head's."""
        return f"{_ip(0)}:{PORT}"

    def namespace(self, number: int | str) -> str:
        """Its name."""
        return f"{self._name}-{number}"

    def __enter__(self) -> "Nodes":
        try:
            self._cable()
            for number in range(self._count):
                self.start(number)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in [*range(self._count), "switch"]:
            self.kill(number)
            subprocess.run(["ip", "netns", "delete", self.namespace(number)], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / self.namespace(number), ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()  # unless there are others'
        for process in self._started:
            process.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _cable(self) -> None:
        switch = self.namespace("switch")
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for number in range(self._count):
            name = self.namespace(number)
            # Without names of the others, connecting takes ten seconds or more.
            hosts = Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True)
            lines = [f"{_ip(other)} node{other}" for other in range(self._count)]
            hosts.write_text("\n".join(["127.0.0.1 localhost", f"{_ip(number)} {socket.gethostname()}", *lines]) + "\n")
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            _run("ip", "-n", name, "address", "add", f"{_ip(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
            _run("ip", "-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")

    def start(self, number: int) -> None:
        """Start Ray on a node that has none, and wait until it has joined."""
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
        role = [f"--address={self.address}"] if number else head
        cpus = 1 if number else self._head_cpus
        options = [f"--num-cpus={cpus}", "--object-store-memory=80000000", f"--node-ip-address={_ip(number)}", "--disable-usage-stats", "--block"]
        before = self.alive() if number else 0
        with (self._folder / f"node{number}.log").open("a") as log:
            # What a process mounts in a namespace, only it and its children see.
            disk = ["sh", "-c", f'mount -t tmpfs none {self._apart} && exec "$@"', "sh"] if self._apart else []
            node = self.popen(number, [*disk, RAY, "start", *role, *options], stdout=log, stderr=subprocess.STDOUT)
        self._started.append(node)
        end = time.monotonic() + START_S
        while self.alive() <= before:
            text = (self._folder / f"node{number}.log").read_text()
            assert node.poll() is None, f"node {number} ended: {text}"
            assert time.monotonic() < end, f"node {number} must start within {START_S} s: {text}"
            time.sleep(0.5)

    def alive(self) -> int:
        """How many nodes the head knows to be alive; 0 before it answers."""
        return len(self.ids())

    def ids(self) -> dict[str, str]:
        """Ray's ids of the nodes that are alive, by address."""
        program = (
            "from ray._private.state import GlobalState\nfrom ray._raylet import GcsClientOptions\nstate = GlobalState()\n"
            f"options = GcsClientOptions.create({self.address!r}, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)\n"
            "state._initialize_global_state(options)\n"
            "print(*(f'{node[\"NodeManagerAddress\"]} {node[\"NodeID\"]}' for node in state.node_table() if node['Alive']), sep='\\n')"
        )
        with self.popen(0, [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as asked:
            try:
                output, _ = asked.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                asked.kill()
                return {}
        return dict(line.split() for line in output.splitlines() if line)

    def popen(self, number: int, command: list[str], **options: object) -> "subprocess.Popen[str]":
        """A process on a node, with the token."""
        environment = {**self._environment, **options.pop("env", {})}  # type: ignore[dict-item]
        return subprocess.Popen(["ip", "netns", "exec", self.namespace(number), *command], env=environment, **options)  # type: ignore[call-overload,no-any-return]

    def drain(self, number: int, *, seconds: int) -> None:
        """Give notice that a node will be taken away."""
        command = [RAY, "drain-node", f"--address={self.address}", f"--node-id={self.ids()[_ip(number)]}"]
        notice = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", f"--deadline-remaining-seconds={seconds}"]
        with self.popen(0, [*command, *notice], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as told:
            output, _ = told.communicate(timeout=60)
        assert told.returncode == 0, output

    def cut(self, number: int) -> None:
        """Pull a node's cable."""
        _run("ip", "-n", self.namespace("switch"), "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        """Plug it in again."""
        _run("ip", "-n", self.namespace("switch"), "link", "set", f"port{number}", "up")

    def kill(self, number: int | str) -> None:
        """Kill every process of a node."""
        for _ in range(20):
            found = subprocess.run(["ip", "netns", "pids", self.namespace(number)], capture_output=True, text=True, check=False)
            pids = [int(pid) for pid in found.stdout.split()]
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)

    def kill_raylet(self, number: int) -> None:
        """Kill the one process that makes a machine a node."""
        found = subprocess.run(["ip", "netns", "pids", self.namespace(number)], capture_output=True, text=True, check=True)
        (pid,) = [int(pid) for pid in found.stdout.split() if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"]
        os.kill(pid, signal.SIGKILL)


def _ip(number: int) -> str:
    return f"10.97.0.{10 + number}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
