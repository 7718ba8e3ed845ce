"""The job for Slurm, run by a Slurm of one node that the test starts itself: munge, controller and node from Debian's slurm-wlm and munge."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.heads import BIN, end, free_ports

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
MISSING = [name for name in NEEDED if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} must be installed: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd starts jobs as their users, which only root can do"),
]
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={top}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmUser=root
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd.log
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a running Slurm; everything that it writes lies in one folder."""
    top = tmp_path_factory.mktemp("slurm")
    # munged refuses folders that others may write to.
    for folder in (top, *top.parents[:2]):
        folder.chmod(0o755)
    for name in ("state", "spool"):
        (top / name).mkdir()
    controller, node = free_ports(2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
    text = CONFIG.format(top=top, host=socket.gethostname(), controller=controller, node=node, cpus=os.cpu_count(), memory=memory)
    (top / "slurm.conf").write_text(text)
    (top / "munge.key").write_bytes(os.urandom(1024))
    (top / "munge.key").chmod(0o400)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    env |= {"SLURM_CONF": str(top / "slurm.conf"), "HOME": str(top), "OMP_NUM_THREADS": "1"}
    munge = [f"--{name}={top / 'munge'}.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")]
    with contextlib.ExitStack() as stack:
        for command in (["munged", "--force", "--foreground", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((top / f"{command[0]}.out").open("w"))
            process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            stack.callback(end, process)
            time.sleep(2)
            assert process.poll() is None, (top / f"{command[0]}.out").read_text()
        wait(lambda: "idle" in said(["sinfo", "--noheader", "--format=%T"], env), 60, top)
        yield env


def said(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stdout


def wait(is_so: Callable[[], bool], seconds: float, top: Path) -> None:
    stop = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < stop, "\n".join(path.read_text()[-3000:] for path in [*top.glob("*.out"), *top.glob("*.log")])
        time.sleep(1)


def test_a_search_runs_as_a_job_of_slurm(slurm: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("imachsr", "launch", "search_spaces"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / ".venv").mkdir()
    (project / ".venv/bin").symlink_to(BIN)
    own = ["--nodes=1", "--cpus-per-task=1", "--gpus-per-task=0", "--mem=0", "--parsable"]
    settings = ["--output", str(project / "a result"), "--trials", "1", "--concurrency", "1", "--wandb", "disabled"]
    tiny = ["run.optimizer.epochs=3", "run.data.num_train=64"]
    command = ["sbatch", *own, "launch/slurm.sbatch", "search_spaces/quickstart.yaml", *settings, *tiny]
    sent = subprocess.run(command, cwd=project, env=slurm, capture_output=True, text=True, timeout=60)
    assert sent.returncode == 0, sent.stderr
    job, log = sent.stdout.strip(), project / f"imachsr-{sent.stdout.strip()}.log"

    def state() -> str:
        return said(["scontrol", "show", "job", job], slurm).partition("JobState=")[2].split()[0]

    stop = time.monotonic() + 400
    while state() in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING") and time.monotonic() < stop:
        time.sleep(2)
    text = log.read_text() if log.exists() else "no log"
    assert state() == "COMPLETED", text
    summary = json.loads((project / "a result/summary.json").read_text())
    assert [trial["state"] for trial in summary["trials"]] == ["COMPLETE"]
    # The nodes' Rays end with the job.
    assert not [
        line for line in said(["ps", "-eo", "args"], slurm).splitlines() if "ray start" in line and f"--port={20000 + int(job) % 2000 * 10}" in line
    ]


def test_a_job_without_a_file_fails_and_says_why(slurm: dict[str, str], tmp_path: Path) -> None:
    own = ["--nodes=1", "--cpus-per-task=1", "--gpus-per-task=0", "--mem=0", "--wait"]
    done = subprocess.run(["sbatch", *own, str(ROOT / "launch/slurm.sbatch")], cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (log,) = tmp_path.glob("imachsr-*.log")
    assert "error: a YAML file must be given" in log.read_text()
