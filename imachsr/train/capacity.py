"""Room for workers and trials on a Ray cluster: what is there, and what an autoscaler may still bring."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from imachsr import storage
from imachsr.cluster import TOKEN, silence, within
from imachsr.config.schema import ConfigError
from imachsr.train.daemons import held_stderr

BOOT_S = 300.0
"""Longest wait for a cluster's nodes to start, seconds."""
CONNECT_S = 60.0
"""Longest wait for a cluster to let a driver in, seconds."""
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # what `ray up` leaves on the head
_KUBERAY = "RAY_CLUSTER_NAME"


def check_address(address: str) -> None:
    """Refuse Ray Client, whose driver is not on the cluster and ends with its connection.

    Raises:
        ConfigError: For an address of ray://, with the command to use instead.
    """
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").partition(":")[0] or "HOST"
        raise ConfigError(
            f"the cluster's address must be HOST:PORT, or auto, but got {address!r}: a driver outside of the cluster would lose the run with its "
            f"connection; submit it instead: ray job submit --address http://{host}:8265 --working-dir . -- python -m imachsr ... --address auto"
        )


def connect(cpus: int | None = None, *, has_dashboard: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine.

    Workers import what the driver can import: its working folder and PYTHONPATH are handed on.

    Args:
        cpus: Logical CPUs of a Ray that is started here; None: those that this machine, or its container, has. Ignored on a cluster.
        has_dashboard: Of a Ray that is started here; it listens on this machine only.

    Raises:
        ConfigError: For a Ray Client address, whose driver would not be on the cluster, or when no cluster answers, or not to this token.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address == "local":  # Ray's own word for none
        address = ""
    check_address(address)
    if address and (why := silence(address)):
        raise ConfigError(why)
    # Ray's own progress output and usage report are for another audience; workers' prints would garble the live table.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray gives its workers nice 15, so that whatever else runs, its own daemons too, takes a core from them: 3 to 5 % of two workers on two cores.
    os.environ.setdefault("RAY_worker_niceness", "0")
    paths = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    # Which network the ranks talk over, without which gloo may choose the loopback; and where storages are, but no keys: Ray shows these to anyone.
    handed_on = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", *storage.PLACES)
    variables |= {name: os.environ[name] for name in handed_on if name in os.environ}
    # "local": without it Ray would join whatever cluster was last started on this machine, and refuse the number of CPUs.
    local: dict[str, Any] = {} if address else {"address": "local", "include_dashboard": has_dashboard, "num_cpus": cpus}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True, **local}
    with _entering(address) if address else contextlib.nullcontext():
        ray.init(runtime_env={"env_vars": variables}, **options)


@contextlib.contextmanager
def _entering(address: str) -> Iterator[None]:
    """Say in one line why a cluster does not let this process in; Ray itself writes a line a second, and may wait for ever."""
    with held_stderr() as said:
        try:
            with within(CONNECT_S, f"{address} did not let this process in within {CONNECT_S:g} s"):
                yield
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            if "Unauthenticated" in said() + str(error) or "AuthenticationError" in type(error).__name__:
                raise ConfigError(f"the cluster at {address} must let this process in, but refuses its token: {TOKEN}") from None
            why = " ".join(str(error).split())
            raise ConfigError(f"RAY_ADDRESS must be the address of a running cluster, but none answers at {address!r}: {why}; {TOKEN}") from None


def words(bundle: Mapping[str, float]) -> str:
    """What a bundle asks for, such as "2 CPUs and 1 GPU"."""
    return " and ".join(f"{each:g} {kind}{'' if each == 1 else 's'}" for kind, each in bundle.items() if each)


def room(bundle: Mapping[str, float]) -> int:
    """How many such bundles the nodes that are there would hold if they were idle; each lies on one node.

    Args:
        bundle: Resources such as {"CPU": 2.0, "GPU": 0.5}, each >= 0, one of them > 0.
    """
    wanted = {kind: each for kind, each in bundle.items() if each}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A hundredth of a thousandth: fractions such as three times 0.1 are not exact.
    return sum(min(int(node.get(kind, 0.0) / each + 1e-5) for kind, each in wanted.items()) for node in nodes)


def has_shown(kind: str) -> bool:
    """Whether a node of the cluster has, or had before it ended, a resource such as GPU."""
    return any(node["Resources"].get(kind, 0.0) > 0 for node in ray.nodes())


def may_grow() -> bool:
    """Whether nodes may still come by themselves: this machine is the head of `ray up`, or a pod of KubeRay."""
    return _BOOTSTRAP.expanduser().exists() or bool(os.environ.get(_KUBERAY))


def at_a_time(asked: int | str, found: int, *, grows: bool) -> int:
    """How many trials or runs are begun side by side: what is asked for beyond the room waits, which is what makes an autoscaler bring nodes.

    Args:
        asked: A number, or auto for as many as there is room for.
        found: That there is room for, >= 1.
        grows: Whether nodes may still come, see :func:`may_grow`.
    """
    return found if not isinstance(asked, int) else asked if grows else min(asked, found)


def await_room(bundle: Mapping[str, float], count: int, *, what: str, say: Callable[[str], object] | None = None) -> int:
    """How many bundles the cluster has room for, ``count`` or less, once it has had the time to bring the nodes.

    Where no node can come by itself there is no wait.

    Args:
        bundle: As in :func:`room`.
        count: How many are wanted, >= 1.
        what: They are for, as in "2 workers".
        say: Told, at once, of a wait; None: a warning.
    """
    if (found := room(bundle)) >= count or not may_grow():
        return min(found, count)
    each = f"{words(bundle)} each" if count > 1 else words(bundle)
    line = f"the cluster has room for {found} of {what} ({each}) yet: asking its autoscaler for nodes, and waiting up to {BOOT_S:g} s for them"
    say(line) if say is not None else warnings.warn(line, stacklevel=3)
    request_resources(bundles=[dict(bundle)] * count)
    try:
        end = time.monotonic() + BOOT_S
        while (found := room(bundle)) < count and time.monotonic() < end:
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # else the nodes would be kept for ever
    return min(found, count)
