"""Files for clusters: read by Ray's own validation where there is one, and held against the lock and the command line."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.launch.commands import check_settings, parse

ROOT = Path(__file__).parent.parent.parent


def locked() -> dict[str, str]:
    """Version of each package that the lock pins, for this Python and machine."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line[0].isspace() and line[0] != "#"]
    found = [Requirement(line) for line in lines]
    return {each.name.lower(): str(each.specifier).removeprefix("==") for each in found if each.marker is None or each.marker.evaluate()}


@pytest.fixture
def cluster() -> Any:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_takes_the_clusters_file(cluster: Any) -> None:
    validate_config(prepare_config(cluster))


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
    (place,) = cluster["file_mounts"]
    assert cluster["file_mounts"][place] == "."
    assert any(f"cd {place}" in command and "--no-deps -r requirements.lock" in command for command in cluster["setup_commands"])
    assert any(pattern.startswith(".venv") for pattern in cluster["rsync_exclude"])


# Kubernetes


@pytest.fixture
def job() -> Any:
    (found,) = yaml.safe_load_all((ROOT / "launch/kubernetes/rayjob.yaml").read_text())
    return found


def groups(job: Any) -> list[Any]:
    spec = job["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_the_ray_job_has_what_the_operator_requires(job: Any) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    for group in groups(job):
        assert isinstance(group["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
    for worker in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    names = [worker["groupName"] for worker in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert len(set(names)) == len(names)


def test_every_volume_that_is_mounted_is_there(job: Any) -> None:
    for group in groups(job):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_jobs_command_is_one_that_the_command_line_takes(job: Any) -> None:
    assert job["spec"]["entrypoint"].startswith("python -m imachsr search ")
    name, params = parse(job["spec"]["entrypoint"])
    check_settings(name, params, ROOT)
    # Results and data lie where all pods look.
    mounts = [mount["mountPath"] for group in groups(job) for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
    for place in (params["data"], params["output"]):
        assert any(str(place).startswith(mount + "/") for mount in mounts)
    gpus = float(dict(text.split("=") for text in params["overrides"])["budget.gpus_per_trial"])
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert params["concurrency"] * gpus <= worker["maxReplicas"] * int(limits["nvidia.com/gpu"])


def test_a_command_with_a_slip_would_be_found(job: Any) -> None:
    with pytest.raises(Exception, match="concurency"):
        parse(job["spec"]["entrypoint"].replace("--concurrency", "--concurency"))
    name, params = parse(job["spec"]["entrypoint"].replace("gpus_per_trial", "gpu_per_trial"))
    with pytest.raises(ValueError, match="gpus_per_trial"):
        check_settings(name, params, ROOT)


# Versions


def test_all_clusters_run_the_locks_ray_and_the_projects_python(cluster: Any, job: Any) -> None:
    image = f"rayproject/ray:{locked()['ray']}-py311"
    assert cluster["docker"]["image"].removesuffix("-gpu") == image
    dockerfile = (ROOT / "launch/kubernetes/Dockerfile").read_text()
    assert re.search(r"^FROM (\S+)$", dockerfile, re.M)[1].removesuffix("-gpu") == image  # type: ignore[index]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked()["ray"]
    assert "--no-deps -r requirements.lock" in dockerfile
    mentioned = re.findall(r"rayproject/ray:\d+\.\d+\.\d+-py\d+", (ROOT / "cluster.yaml").read_text())
    assert set(mentioned) == {image}


def test_all_pods_run_the_image_that_the_dockerfile_makes(job: Any) -> None:
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(job)}
    (image,) = images
    assert f"-t {image} " in (ROOT / "launch/kubernetes/Dockerfile").read_text()
    version = re.search(r'__version__ = "(.+)"', (ROOT / "imachsr/version.py").read_text())
    assert version
    assert image.endswith(f":{version[1]}")
