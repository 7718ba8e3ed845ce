"""A real Ray head with a token, on ports and in a home of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, below those that the system gives away by itself."""
    found: list[int] = []
    port = 20000 + os.getpid() % 10000
    while len(found) < count:
        port += 1
        with socket.socket() as asked, contextlib.suppress(OSError):
            asked.bind(("", port))
            found.append(port)
    return found


@dataclass(frozen=True, kw_only=True)
class Head:
    """Attributes: home: With the token. folder: Ray's files. address: HOST:PORT. api: URL of jobs. env: For programs that may use it."""

    home: Path
    folder: Path
    address: str
    api: str
    env: dict[str, str]


@contextlib.contextmanager
def running_head(*, cpus: int = 2) -> Iterator[Head]:
    """Started and ended by its own processes' ids: other Rays of the machine are left alone."""
    # Not in pytest's folder: the paths of Ray's sockets have at most 107 letters.
    top = Path(tempfile.mkdtemp(prefix="ray-"))
    port, api, agent, client = free_ports(4)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "WANDB_"))}
    env |= {"HOME": str(top / "home"), "RAY_AUTH_MODE": "token", "PATH": f"{BIN}:{env['PATH']}", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    (top / "home").mkdir()
    subprocess.run(["ray", "get-auth-token", "--generate"], env=env, check=True, capture_output=True, timeout=120)
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--temp-dir={top / 'ray'}", f"--num-cpus={cpus}", "--disable-usage-stats"]
    command += [
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={api}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]
    log = (top / "log").open("w")
    started = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for each in (port, api, agent):
            await_port(started, each, top / "log")
        yield Head(home=top / "home", folder=top / "ray", address=f"127.0.0.1:{port}", api=f"http://127.0.0.1:{api}", env=env)
    finally:
        end(started)
        log.close()
        shutil.rmtree(top, ignore_errors=True)


def await_port(process: "subprocess.Popen[bytes]", port: int, log: Path, *, timeout: float = 120) -> None:
    """Until somebody listens; Ray's agent listens on the node's own address."""
    hosts = ["127.0.0.1", socket.gethostname(), *_addresses()]
    end_ = time.monotonic() + timeout
    while time.monotonic() < end_:
        assert process.poll() is None, log.read_text()
        for host in hosts:
            with contextlib.suppress(OSError):
                socket.create_connection((host, port), timeout=1).close()
                return
        time.sleep(0.3)
    raise AssertionError(f"nobody listens on {port}: {log.read_text()}")


def _addresses() -> list[str]:
    from imachsr.probe import interfaces

    return list(interfaces().values())


def end(process: "subprocess.Popen[bytes]") -> None:
    """The process and its group; `ray start --block` ends what it started."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
