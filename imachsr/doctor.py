"""What this machine has for imachsr."""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import Literal

PACKAGES = ("torch", "torchvision", "ray", "optuna", "segmentation-models-pytorch", "wandb", "pydantic", "plotly")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Attributes: name: What was looked at. state: ok, note (works, but) or fail. finding: In words."""

    name: str
    state: Literal["ok", "note", "fail"]
    finding: str


def diagnose() -> list[Check]:
    """Look at versions, devices, memory, disk, Ray and W&B; nothing is started or changed."""
    checks = [
        Check(name="python", state="ok" if sys.version_info >= (3, 11) else "fail", finding=f"{platform.python_version()}, needs 3.11 or newer")
    ]
    for name in PACKAGES:
        try:
            checks.append(Check(name=name, state="ok", finding=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name=name, state="fail", finding="not installed; pip install -r requirements.lock"))
    if any(check.state == "fail" for check in checks):
        return checks
    return [*checks, *_machine(), _ray(), _wandb()]


def _machine() -> list[Check]:
    import torch

    from imachsr.config.schema import Compute
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
        Check(name="GPU", state="ok" if machine.has_cuda else "note", finding=gpus),
        Check(name="CPU", state="ok", finding=f"{os.cpu_count()} cores; a trial takes 1 by default"),
        Check(name="auto precision", state="ok", finding=fast),
        Check(name="memory", state="ok" if memory >= 4 else "note", finding=f"{memory:.1f} GiB; 1 to 3 GiB a trial"),
        Check(name="shared memory", state="ok" if shm >= 1 else "note", finding=f"{shm:.1f} GiB free in /dev/shm; Ray wants 1 or more"),
        Check(name="disk", state="ok" if free >= 5 else "note", finding=f"{free:.1f} GiB free here"),
    ]


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    return Check(name="cluster", state="ok", finding=f"RAY_ADDRESS is {address}" if address else "RAY_ADDRESS is not set: Ray starts on this machine")


def _wandb() -> Check:
    from imachsr.tracking.wandb import preflight

    found = preflight("auto")
    return Check(name="W&B", state="ok" if found.mode == "online" else "note", finding=f"{found.mode}: {found.reason}")
