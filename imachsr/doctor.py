"""What this machine, and the nodes of a cluster, have for imachsr."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from imachsr.probe import Check

PACKAGES = ("torch", "torchvision", "ray", "optuna", "segmentation-models-pytorch", "wandb", "pydantic")


def diagnose(address: str | None = None, *, storage: str | Path | None = None, data: Path | None = None) -> list[Check]:
    """Look at versions, devices, memory, disk, Ray and W&B here and, with an address, at what the nodes of that cluster should agree on.

    Nothing is changed; a cluster runs a probe on each node for a few seconds, and files written to ``storage`` are removed.

    Args:
        address: HOST:PORT of a running Ray cluster, or "auto" for the one of this machine.
        storage: Folder for results, which all nodes should share, or the address of a storage, which all machines that are looked at should reach.
        data: Folder of a data set, which all nodes should see.

    Raises:
        ConfigError: If a folder is given without an address, or what is no address of a storage.
    """
    uri = _uri(storage)
    if address is None and ((storage and not uri) or data):
        from imachsr.config.schema import ConfigError

        raise ConfigError(
            f"{'--storage' if storage and not uri else '--data'} must go with --address, but got none; --address auto is the cluster of this machine"
        )
    python = f"{platform.python_version()}, needs 3.11 or newer"
    checks = [Check(name="python", state="ok" if sys.version_info >= (3, 11) else "error", finding=python)]
    for name in PACKAGES:
        try:
            checks.append(Check(name=name, state="ok", finding=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name=name, state="error", finding="not installed; pip install -r requirements.lock"))
    if any(check.state == "error" for check in checks):
        return checks
    return [*checks, *_machine(), _wandb(), *_reached(uri), *(_cluster(address, storage, uri, data) if address else [_ray()])]


def _uri(storage: str | Path | None) -> str | None:
    """The address of a storage; None for a folder, about which nodes are asked in another way."""
    if storage is None or "://" not in (text := str(storage)):
        return None
    from imachsr.config.schema import ConfigError
    from imachsr.storage import address

    try:
        return address(text)
    except ValueError as error:
        raise ConfigError(f"--storage: {error}") from None


def _reached(uri: str | None) -> list[Check]:
    """Whether this machine uses a storage."""
    if uri is None:
        return []
    from imachsr.train.courier import Courier, probe

    courier = Courier(uri)
    try:
        why = probe(courier)
    finally:
        courier.close()
    finding = f"{uri} must be writable and readable, but: {why}" if why else f"{uri} can be written to and read from here"
    return [Check(name="storage here", state="error" if why else "ok", finding=finding)]


def _cluster(address: str, storage: str | Path | None, uri: str | None, data: Path | None) -> list[Check]:
    from imachsr import checkup, cluster
    from imachsr.train.capacity import connect

    if silent := cluster.silence(address):
        return [Check(name="cluster", state="error", finding=silent)]
    os.environ["RAY_ADDRESS"] = address
    try:
        connect()
    except Exception as error:  # whatever keeps Ray out is the finding
        return [Check(name="cluster", state="error", finding=" ".join(str(error).split()))]
    there = cluster.nodes()
    none = "not looked at; give --{} PATH, a folder that all nodes should {}"
    with cluster.asking(there) as asked:
        return [
            Check(name="cluster", state="ok", finding=f"{address} answers, {len(there)} nodes"),
            *checkup.resources(there),
            *checkup.versions(asked),
            *(
                cluster.reached(uri, asked)
                if uri
                else cluster.storage(Path(storage), asked)
                if storage
                else [Check(name="storage", state="warning", finding=none.format("storage", "share"))]
            ),
            *(checkup.dataset(data, asked) if data else [Check(name="data", state="warning", finding=none.format("data", "see"))]),
            *checkup.clocks(asked),
            *checkup.networks(asked),
        ]


def _machine() -> list[Check]:
    import torch

    from imachsr.config.training import Compute
    from imachsr.train.device import Machine, decide

    machine = Machine.here()
    placement = decide(Compute(), machine)
    gpus = (
        ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        if machine.has_cuda
        else "none: training uses the CPU"
    )
    fast = f"{'bfloat16' if placement.is_bfloat16 else 'float32'}, {'NHWC' if placement.is_channels_last else 'NCHW'} on {placement.device}"
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    shm = shutil.disk_usage("/dev/shm").free / 2**30 if os.path.isdir("/dev/shm") else 0.0
    return [
        Check(name="GPU", state="ok" if machine.has_cuda else "warning", finding=gpus),
        Check(name="CPU", state="ok", finding=f"{os.cpu_count()} cores; a trial takes 1 by default"),
        Check(name="auto precision", state="ok", finding=fast),
        Check(name="memory", state="ok" if memory >= 4 else "warning", finding=f"{memory:.1f} GiB; 1 to 3 GiB a trial"),
        Check(name="shared memory", state="ok" if shm >= 1 else "warning", finding=f"{shm:.1f} GiB free in /dev/shm; Ray wants 1 or more"),
        Check(name="disk", state="ok" if free >= 5 else "warning", finding=f"{free:.1f} GiB free here"),
    ]


def _ray() -> Check:
    if address := os.environ.get("RAY_ADDRESS"):
        return Check(name="cluster", state="ok", finding=f"RAY_ADDRESS is {address}; --address {address} checks its nodes")
    return Check(name="cluster", state="ok", finding="RAY_ADDRESS is not set: Ray starts on this machine")


def _wandb() -> Check:
    from imachsr.tracking.preflight import preflight

    found = preflight("auto")
    return Check(name="W&B", state="ok" if found.mode == "online" else "warning", finding=f"{found.mode}: {found.reason}")
