"""What the nodes of a Ray cluster have in common, asked on every one of them."""

import contextlib
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imachsr import probe
from imachsr import storage as objects
from imachsr.config.schema import ConfigError
from imachsr.probe import Check

ANSWER_S = 60.0  # longest wait for a node, seconds
TOKEN = "a cluster with tokens needs RAY_AUTH_MODE=token and its token in ~/.ray/auth_token"
_MARK = ".imachsr-shared-"
_MOUNT = "mount one folder on all nodes (NFS, EFS, Filestore, Lustre), or give imachsr train a --storage"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        address: Its IP address, by which the others reach it.
        resources: Ray's, such as {"CPU": 8.0, "GPU": 1.0}.
    """

    id: str
    address: str
    resources: Mapping[str, float]

    @property
    def name(self) -> str:
        """What a person tells it by; several may share an address."""
        return f"node {self.address} ({self.id[:6]})"


def nodes() -> list[Node]:
    """The nodes that are alive; Ray must be connected."""
    found = [Node(id=each["NodeID"], address=each["NodeManagerAddress"], resources=each["Resources"]) for each in ray.nodes() if each["Alive"]]
    return sorted(found, key=lambda node: (node.address, node.id))


def silence(address: str) -> str:
    """Why nobody listens at an address, or "": Ray itself would wait for a cluster for ever."""
    if address == "auto":
        return ""
    place = urlsplit(f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        return f"--address must be HOST:PORT or auto, but got {address!r}; the head's port is 6379 by default"
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return f"nobody listens at {address} ({error}); start the cluster (./launch/cluster.sh up), or run this on a machine that reaches the head"
    return ""


@contextlib.contextmanager
def within(seconds: float, message: str) -> Iterator[None]:
    """End what lasts longer, since Ray waits for ever for a cluster that refuses its token. Elsewhere than in the main thread nothing is ended.

    Raises:
        TimeoutError: With the message.
    """

    def end(*_: object) -> None:
        raise TimeoutError(message)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Asked:
    """A probe on each node; what a node cannot answer is an exception among the answers.

    Args:
        nodes: Which.
        timeout: Longest wait for all answers to one question, seconds.
    """

    def __init__(self, nodes: list[Node], *, timeout: float = ANSWER_S) -> None:
        self.nodes = nodes
        self._timeout = timeout
        # By value: the package may be missing, or another one, where it is asked about.
        for module in (probe, objects):
            cloudpickle.register_pickle_by_value(module)
        try:
            remote = ray.remote(num_cpus=0, max_restarts=0)(probe.Probe)
            self._actors = {
                node.id: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote() for node in nodes
            }
        finally:
            for module in (probe, objects):
                cloudpickle.unregister_pickle_by_value(module)

    def ask(self, name: str, *args: str) -> dict[str, Any]:
        """The answers by node id."""
        return self.ask_each(name, {node.id: args for node in self.nodes})

    def ask_each(self, name: str, args: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        """The same with arguments of each node's own; nodes without any are not asked."""
        pending = {node_id: self._actors[node_id].ask.remote(name, *each) for node_id, each in args.items()}
        ray.wait(list(pending.values()), num_returns=len(pending), timeout=self._timeout)
        return {node_id: _result(reference) for node_id, reference in pending.items()}

    def clocks(self, *, draws: int = 5) -> dict[str, tuple[float, float] | Exception]:
        """Bounds of each node's clock minus ours, in seconds: it was read between our question and its answer."""
        found: dict[str, tuple[float, float] | Exception] = {}
        for node in self.nodes:
            samples = []
            for _ in range(draws):
                sent = time.time()
                answer = self.ask_each("clock", {node.id: ()})[node.id]
                if isinstance(answer, Exception):
                    found[node.id] = answer
                    break
                samples.append((sent, answer, time.time()))
            else:
                found[node.id] = skew(samples)
        return found

    def close(self) -> None:
        """End the probes."""
        for actor in self._actors.values():
            ray.kill(actor)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return TimeoutError("it does not answer")
    except Exception as error:  # whatever a broken node raises is its finding
        return error


@contextlib.contextmanager
def asking(nodes: list[Node], *, timeout: float = ANSWER_S) -> Iterator[Asked]:
    """Probes that are ended afterwards."""
    asked = Asked(nodes, timeout=timeout)
    try:
        yield asked
    finally:
        asked.close()


def skew(samples: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Bounds of another clock minus ours.

    Args:
        samples: Our time when asking, the other's answer, our time when it came; seconds.

    Returns:
        The least and the most that all samples allow.
    """
    return max(answer - came for _, answer, came in samples), min(answer - sent for sent, answer, _ in samples)


def storage(folder: Path, asked: Asked) -> list[Check]:
    """Whether every node reads in a folder what this machine writes there, and the other way round.

    Args:
        folder: What is asked about; its nearest existing parent is looked at when it does not exist yet. Nothing is left behind.
        asked: The nodes.
    """
    place = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.is_dir())
    word = f".imachsr-probe-{secrets.token_hex(8)}"
    try:
        (place / word).write_text(word)
    except OSError as error:
        return [Check(name="storage", state="error", finding=f"{place} must be writable, but is not here ({error.strerror})")]
    try:
        own = {node.id: f"{word}-{node.id}" for node in asked.nodes}
        answers = asked.ask_each("meet", {node.id: (str(place), word, own[node.id]) for node in asked.nodes})
        met = {node_id: (str(place / own[node_id]),) for node_id, answer in answers.items() if answer == ""}
        for node_id, (path,) in met.items():
            if not probe.appears(Path(path), word):
                answers[node_id] = f"{place} is another folder there: a file written there does not appear here"
        asked.ask_each("remove", met)
    finally:
        (place / word).unlink(missing_ok=True)
    wrong = [(node.name, answers[node.id]) for node in asked.nodes if answers[node.id] != ""]
    if not wrong:
        return [Check(name="storage", state="ok", finding=f"{place} is the same folder on {count(asked.nodes)}, and writable")]
    return [Check(name=f"storage on {name}", state="error", finding=f"{words(answer)}; {_MOUNT}") for name, answer in wrong]


def reached(uri: str, asked: Asked) -> list[Check]:
    """Whether every node writes to a storage, and reads what it wrote.

    Args:
        uri: As :func:`imachsr.storage.address` gives it. Nothing is left behind.
        asked: The nodes.
    """
    answers = asked.ask_each("reach", {node.id: (uri, secrets.token_hex(8)) for node in asked.nodes})
    wrong = [(node.name, words(answers[node.id])) for node in asked.nodes if answers[node.id] != ""]
    if not wrong:
        return [Check(name="storage", state="ok", finding=f"{uri} can be written to and read from on {count(asked.nodes)}")]
    return [Check(name=f"storage on {name}", state="error", finding=f"{uri} must be writable and readable, but: {why}") for name, why in wrong]


def require_reached(uri: str) -> None:
    """Refuse a storage that a node of the connected cluster cannot use, before anything is trained.

    Raises:
        ConfigError: With the first such node, and what to check.
    """
    with asking(nodes()) as asked:
        for check in reached(uri, asked):
            if check.state == "error":
                raise ConfigError(
                    f"--storage must be a place that all nodes can use, but on {check.name.removeprefix('storage on ')} {check.finding}"
                )


def require_shared(folder: Path, *, setting: str = "--output") -> None:
    """Refuse a result folder that not every node of the connected cluster shares, before anything is trained.

    One node alone needs no question: this process runs on it.

    Raises:
        ConfigError: With the first node that does not see it, and what to do.
    """
    if len(there := nodes()) < 2:
        return
    with asking(there) as asked:
        checks = storage(folder, asked)
    for check in checks:
        if check.state == "error":
            where = check.name.removeprefix("storage").strip()
            raise ConfigError(f"{setting} must be a folder that all nodes of the cluster share, but {where or 'this machine'}: {check.finding}")


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[str]:
    """A word that a hidden file holds meanwhile, by which :func:`require_marked` knows the folder, also on nodes that come later.

    Args:
        folder: Is made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_MARK}*"):  # of a process that was killed
        old.unlink(missing_ok=True)
    word = secrets.token_hex(8)
    (folder / f"{_MARK}{word}").write_text(word)
    try:
        yield word
    finally:
        (folder / f"{_MARK}{word}").unlink(missing_ok=True)


def require_marked(folder: Path, word: str, *, setting: str = "--output") -> None:
    """Refuse, in a worker, a folder that is not the one which its driver has :func:`marked`.

    Raises:
        ConfigError: With the node, and what to do.
    """
    if not probe.appears(folder / f"{_MARK}{word}", word):
        here = Node(id=ray.get_runtime_context().get_node_id(), address=ray.util.get_node_ip_address(), resources={}).name
        raise ConfigError(
            f"{setting} must be a folder that all nodes of the cluster share, but on {here} {folder} is another folder: a file written by the driver "
            f"does not appear; {_MOUNT}"
        )


def words(answer: str | Exception) -> str:
    """A node's answer, or why there is none, in one line."""
    if isinstance(answer, str):
        return answer
    lines = str(answer).strip().splitlines()
    return f"{type(answer).__name__}: {lines[-1] if lines else 'no reason given'}"


def count(there: list[Node]) -> str:
    """How many, as in "on ..."."""
    return "the one node" if len(there) == 1 else f"all {len(there)} nodes"
