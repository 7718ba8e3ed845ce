"""What the nodes of a cluster should agree on, and what to do where they do not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from imachsr import probe
from imachsr.cluster import Asked, Node, count, words
from imachsr.probe import Check

SKEW_S = 1.0  # clocks that differ by more are told, seconds
State = Literal["ok", "warning", "error"]


def dataset(folder: Path, asked: Asked) -> list[Check]:
    """Whether every node sees a data set's folder with the same names in it as this machine."""
    here = probe.listing(str(folder.absolute()))
    if not here or here.startswith("!"):
        why = here[1:] or "no such folder"
        return [Check(name="data", state="error", finding=f"{folder} must be a folder, but cannot be read here ({why}); give --data PATH")]
    found = []
    for node, answer in _answers(asked, "listing", str(folder.absolute())):
        if isinstance(answer, Exception):
            found.append((node.name, words(answer)))
        elif answer != here:
            found.append((node.name, f"{folder} {'does not exist' if not answer else answer[1:] if answer[0] == '!' else 'holds other files'} there"))
    if not found:
        return [Check(name="data", state="ok", finding=f"{folder} holds the same on {count(asked.nodes)}")]
    return [Check(name=f"data on {name}", state="error", finding=f"{why}; put the data in a folder that all nodes mount") for name, why in found]


def versions(asked: Asked) -> list[Check]:
    """Whether every node has the Python, torch, ray and imachsr of this process, and those with GPUs the same build of torch."""
    here, answers = probe.versions(), _answers(asked, "versions")
    found = [check for node, answer in answers for check in compare_versions(here, answer, node.name)]
    found += compare_builds({node.name: answer["torch"] for node, answer in answers if node.resources.get("GPU") and isinstance(answer, Mapping)})
    told = ", ".join(f"{name} {version}" for name, version in here.items())
    return found or [Check(name="versions", state="ok", finding=f"{told} on {count(asked.nodes)}")]


def compare_builds(torches: Mapping[str, str | None]) -> list[Check]:
    """What is wrong with the builds of torch on nodes that have GPUs: one without CUDA, or unlike ones, which have unlike NCCLs.

    Args:
        torches: Version, such as 2.14.1+cu128, by the node's name; None: not installed.
    """
    bare = {name: version for name, version in torches.items() if version and version.endswith("+cpu")}
    rest = {name: version for name, version in torches.items() if version and name not in bare}
    why = "which uses no GPU, but the node has some; install a CUDA build"
    found = [Check(name=f"torch build on {name}", state="error", finding=f"torch is {version}, {why}") for name, version in bare.items()]
    if len(set(rest.values())) > 1:
        which = ", ".join(f"{version} on {name}" for name, version in rest.items())
        finding = f"nodes with GPUs must have one build of torch, but have {which}; install one"
        found.append(Check(name="torch builds", state="error", finding=finding))
    return found


def compare_versions(here: Mapping[str, str | None], there: Mapping[str, str | None] | Exception, name: str) -> list[Check]:
    """What differs between this process and a node; builds of one version, as +cpu and +cu128, do not."""
    if isinstance(there, Exception):
        return [Check(name=f"versions on {name}", state="error", finding=words(there))]
    found = []
    for package, wanted in here.items():
        has = there[package]
        if has is None:
            found.append(f"{package} is not installed")
        elif has.partition("+")[0] != (wanted or "").partition("+")[0]:
            found.append(f"{package} is {has}, but {wanted} here")
    advice = "install requirements.lock there (setup_commands of cluster.yaml, or the image)"
    return [Check(name=f"versions on {name}", state="error", finding=f"{'; '.join(found)}; {advice}")] if found else []


def resources(there: list[Node]) -> list[Check]:
    """One line a node."""
    found = []
    for node in there:
        cpus, gpus = node.resources.get("CPU", 0), node.resources.get("GPU", 0)
        memory = node.resources.get("memory", 0) / 2**30
        what = f"{cpus:g} CPU, {gpus:g} GPU, {memory:.1f} GiB of memory for Ray"
        state: State = "warning" if cpus and memory < 1 else "ok"
        found.append(Check(name=node.name, state=state, finding=what + ("; a trial takes 1 to 3 GiB" if state == "warning" else "")))
    if not any(node.resources.get("CPU", 0) for node in there):
        wait = "no node has a CPU for a trial; wait for workers to start (ray status), or start them with --num-cpus"
        found.append(Check(name="resources", state="error", finding=wait))
    return found


def clocks(asked: Asked) -> list[Check]:
    """Whether the nodes' clocks agree with this one within a second."""
    found = [check for node, bounds in zip(asked.nodes, asked.clocks().values(), strict=True) if (check := judge_clock(bounds, node.name))]
    return found or [Check(name="clock", state="ok", finding=f"within {SKEW_S:g} s of this one on {count(asked.nodes)}")]


def judge_clock(bounds: tuple[float, float] | Exception, name: str) -> Check | None:
    """None for a clock that may be right."""
    if isinstance(bounds, Exception):
        return Check(name=f"clock on {name}", state="error", finding=words(bounds))
    low, high = bounds
    nearest = max(low, min(high, 0.0))  # the smallest difference that the bounds allow
    if abs(nearest) <= SKEW_S:
        return None
    finding = f"{abs(nearest):.1f} s {'ahead of' if nearest > 0 else 'behind'} this one; its records have wrong times; run an NTP client (chrony)"
    return Check(name=f"clock on {name}", state="warning", finding=finding)


def networks(asked: Asked) -> list[Check]:
    """Where gloo listens on each node: on the loopback interface the others never reach it."""
    found = []
    for node, answer in _answers(asked, "network"):
        found.append(judge_network(answer, node, is_alone=len(asked.nodes) < 2))
        if node.resources.get("GPU") and not isinstance(answer, Exception) and (check := judge_nccl(answer, node)) is not None:
            found.append(check)
    return found


def judge_nccl(seen: Mapping[str, Any], node: Node) -> Check | None:
    """A line about a node with GPUs when NCCL_SOCKET_IFNAME is set; without it, NCCL takes an interface other than the loopback and Docker's."""
    wanted, known = seen["nccl"], list(seen["interfaces"])
    if not wanted:
        return None
    # NCCL's words: prefixes, =names, or after a ^ those that are not taken.
    kinds = ("^=", "^", "=", "")
    kind = next(each for each in kinds if wanted.startswith(each))
    names = wanted.removeprefix(kind).split(",")
    fits = {each for each in known if any(each == name if "=" in kind else each.startswith(name) for name in names)}
    left = [each for each in known if (each in fits) != ("^" in kind)]
    name = f"NCCL's network of {node.name}"
    if not left:
        finding = f"NCCL_SOCKET_IFNAME={wanted} leaves none of the interfaces {', '.join(known)}; name one of them"
        return Check(name=name, state="error", finding=finding)
    return Check(name=name, state="ok", finding=f"NCCL listens on {', '.join(left)}, as NCCL_SOCKET_IFNAME={wanted} says")


def judge_network(seen: Mapping[str, Any] | Exception, node: Node, *, is_alone: bool) -> Check:
    """One node's line, from what :func:`imachsr.probe.network` found there."""
    name = f"network of {node.name}"
    if isinstance(seen, Exception):
        return Check(name=name, state="error", finding=words(seen))
    known: Mapping[str, str] = seen["interfaces"]
    if named := seen["named"]:
        if missing := [each for each in named.split(",") if each not in known]:
            there = ", ".join(known)
            return Check(name=name, state="error", finding=f"GLOO_SOCKET_IFNAME names {missing[0]}, but the interfaces are {there}; name one of them")
        return Check(name=name, state="ok", finding=f"gloo listens on {named}, as GLOO_SOCKET_IFNAME says")
    own = next((each for each, address in known.items() if address == node.address), None)
    advice = f"set GLOO_SOCKET_IFNAME={own} on every node" if own else "set GLOO_SOCKET_IFNAME to the interface that the others reach"
    state: State = "ok" if is_alone else "warning"
    address = seen["address"]
    if address is None or address.startswith("127."):
        finding = f"{seen['host']} {f'is {address}' if address else 'does not resolve'}, so gloo listens on loopback"
        return Check(name=name, state=state, finding=finding + (", which is enough for one node" if is_alone else f"; {advice}"))
    where = next((each for each, known_address in known.items() if known_address == address), None)
    if where is None:
        finding = f"{seen['host']} resolves to {address}, which no interface has; mend /etc/hosts, or {advice}"
        return Check(name=name, state="warning", finding=finding)
    return Check(name=name, state="ok", finding=f"gloo listens on {where} ({address})")


def _answers(asked: Asked, name: str, *args: str) -> list[tuple[Node, Any]]:
    answers = asked.ask(name, *args)
    return [(node, answers[node.id]) for node in asked.nodes]
