"""Files for clusters of `ray up`: read by Ray's own validation, held against each other, and against the lock."""

import copy
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.launch.test_kubernetes import groups, job

ROOT = Path(__file__).parent.parent.parent
__all__ = ["job"]  # the fixture


def locked() -> dict[str, str]:
    """Version of each package that the lock pins, for this Python and machine."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line[0].isspace() and line[0] != "#"]
    found = [Requirement(line) for line in lines]
    return {each.name.lower(): str(each.specifier).removeprefix("==") for each in found if each.marker is None or each.marker.evaluate()}


FILES = [ROOT / "cluster.yaml", *sorted(ROOT.glob("launch/ray/*.yaml"))]


@pytest.fixture
def cluster() -> Any:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_the_files_are_of_three_kinds() -> None:
    assert [yaml.safe_load(path.read_text())["provider"]["type"] for path in FILES] == ["aws", "gcp", "local"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_the_clusters_file(path: Path) -> None:
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_typo_in_it_is_caught(path: Path) -> None:
    """Each key of the top level, misspelt in turn."""
    config = yaml.safe_load(path.read_text())
    for key in config:
        broken = {f"{name}x" if name == key else name: value for name, value in config.items()}
        with pytest.raises((jsonschema.ValidationError, KeyError, ValueError)):
            validate_config(prepare_config(broken))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_outside_reaches_ssh_only_and_the_inside_needs_the_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    # Ray's default security group opens SSH and the cluster itself; a rule of ours would open more.
    assert "security_group" not in config["provider"]
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head.split()
    assert "-p " not in " ".join(config["docker"]["run_options"])  # Docker would publish past the firewall
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token ray start" in command
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_variants_differ_only_in_what_their_clouds_name_otherwise(cluster: Any) -> None:
    own = {"provider", "auth", "available_node_types", "head_node_type", "initialization_commands", "max_workers", "idle_timeout_minutes"}
    for path in FILES[1:]:
        config = yaml.safe_load(path.read_text())
        differing = {key for key in {*cluster, *config} if cluster.get(key) != config.get(key)}
        # Without node types the head's resources stand in its command.
        assert differing <= own | ({"head_start_ray_commands"} if path.name == "onprem.yaml" else set()), path.name
        assert any("/mnt/shared" in command for command in config["initialization_commands"])


@pytest.mark.parametrize("path", FILES[:2], ids=lambda path: path.name)
def test_workers_with_gpus_come_and_go_on_spot_and_the_head_stays(path: Path) -> None:
    kinds = yaml.safe_load(path.read_text())["available_node_types"]
    head, worker = kinds["head"], kinds["gpu_worker"]
    assert worker["min_workers"] < worker["max_workers"]
    assert worker["resources"]["GPU"] == 1
    for config, is_spot in ((head["node_config"], False), (worker["node_config"], True)):
        spot = config.get("InstanceMarketOptions", {}).get("MarketType") == "spot" or {"preemptible": True} in config.get("scheduling", [])
        assert spot == is_spot


def test_no_file_that_is_shipped_holds_a_key_or_a_token() -> None:
    """By what keys look like, and by what would be set to one."""
    looks = r"(?<!/archive/)\b[0-9a-f]{40}\b|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|ghp_\w{36}|wandb_v1_\w{20}"
    sets = r"(?i:\b(wandb_api_key|ray_auth_token|aws_secret_access_key|auth_token|password)\s*[:=]\s*[\"']?[A-Za-z0-9/+]{16,})"
    folders = ("imachsr", "launch", "search_spaces", "benchmarks", ".ci")
    texts = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix not in (".pyc", ".png")]
    texts += [path for path in ROOT.iterdir() if path.is_file()]
    assert len(texts) > 60
    found = [(path.name, match[0]) for path in texts for match in re.finditer(f"{looks}|{sets}", _shipped(path))]
    assert found == []
    for key in ("WANDB_API_KEY=" + "4f" * 20, "auth_token: " + "Ab3" * 8, "x " + "0a" * 20):
        assert re.search(f"{looks}|{sets}", key), key


def _shipped(path: Path) -> str:
    """The text of a file; of a table of runs without the git revisions, which look like a key of W&B."""
    if path.suffix != ".csv":
        return path.read_text(errors="ignore")
    with path.open(newline="") as file:
        return "\n".join(f"{name}={value}" for row in csv.DictReader(file) for name, value in row.items() if name != "revision")


def _edit(path: str, value: Any) -> Callable[[Any], None]:
    def edit(config: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            config = config[part]
        config[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "wording"),
    [
        (_edit("max_wokers", 3), jsonschema.ValidationError, "max_wokers"),
        (_edit("available_node_types.gpu_worker.min_worker", 1), jsonschema.ValidationError, "min_worker"),
        (_edit("available_node_types.gpu_worker.min_workers", 9), ValueError, "max_workers.*smaller than.*min_workers"),
        (_edit("head_node_type", "haed"), ValueError, "head"),
        (_edit("docker.image", 3), jsonschema.ValidationError, "3"),
    ],
    ids=["unknown key", "unknown key below", "more least than most workers", "head of no type", "wrong type"],
)
def test_rays_validation_would_find_a_slip(cluster: Any, edit: Callable[[Any], None], error: type[Exception], wording: str) -> None:
    """A validation that takes everything would show nothing above."""
    broken = copy.deepcopy(cluster)
    edit(broken)
    with pytest.raises(error, match=wording):
        validate_config(prepare_config(broken))


def test_the_head_runs_no_trials(cluster: Any) -> None:
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_workers_install_from_the_lock_what_is_synced_to_them(cluster: Any) -> None:
    (place,) = [place for place, source in cluster["file_mounts"].items() if source == "."]
    assert any(f"cd {place}" in command and "--no-deps -r requirements.lock" in command for command in cluster["setup_commands"])
    assert any(pattern.startswith(".venv") for pattern in cluster["rsync_exclude"])


# Versions


def test_all_clusters_run_the_locks_ray_and_the_projects_python(job: Any) -> None:
    image = f"rayproject/ray:{locked()['ray']}-py311"
    dockerfile = (ROOT / "launch/kubernetes/Dockerfile").read_text()
    (base,) = re.findall(r"^FROM (\S+)$", dockerfile, re.M)
    assert base.removesuffix("-gpu") == image
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked()["ray"]
    assert "--no-deps -r requirements.lock" in dockerfile
    for path in FILES:
        assert yaml.safe_load(path.read_text())["docker"]["image"].removesuffix("-gpu") == image
        assert set(re.findall(r"rayproject/ray:\d+\.\d+\.\d+-py\d+", path.read_text())) == {image}


def test_all_pods_run_the_image_that_the_dockerfile_makes(job: Any) -> None:
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(job)}
    (image,) = images
    assert f"-t {image} " in (ROOT / "launch/kubernetes/Dockerfile").read_text()
    version = re.search(r'__version__ = "(.+)"', (ROOT / "imachsr/version.py").read_text())
    assert version
    assert image.endswith(f":{version[1]}")
