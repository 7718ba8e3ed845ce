"""The job for Kubernetes: by a schema of the operator's fields, by Kubernetes' own schemas of pods, and against the command line."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.commands import check_settings, parse

ROOT = Path(__file__).parent.parent.parent
SCHEMA = yaml.safe_load((Path(__file__).parent / "rayjob.schema.yaml").read_text())


@pytest.fixture
def job() -> Any:
    (found,) = yaml.safe_load_all((ROOT / "launch/kubernetes/rayjob.yaml").read_text())
    return found


def groups(job: Any) -> list[Any]:
    spec = job["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def check(job: Any) -> None:
    jsonschema.validate(job, SCHEMA, cls=jsonschema.Draft202012Validator)
    for group in groups(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_operator_and_kubernetes_take_the_job(job: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    check(job)


HEAD, WORKERS = ["spec", "rayClusterSpec", "headGroupSpec"], ["spec", "rayClusterSpec", "workerGroupSpecs", 0]
CONTAINER = ["template", "spec", "containers", 0]


def _set(path: list[Any], value: Any) -> Callable[[Any], None]:
    def edit(job: Any) -> None:
        for part in path[:-1]:
            job = job[part]
        job[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "wording"),
    [
        (_set(["apiVersion"], "ray.io/v1alpha1"), "ray.io/v1"),
        (_set(["metadata", "name"], "Search_1"), "Search_1"),
        (_set(["spec", "entryPoint"], "x"), "entryPoint"),
        (_set(["spec", "shutdownAfterJobFinishes"], False), "True was expected"),
        (_set(["spec", "rayClusterSpec", "rayVersion"], 2.6), "2.6"),
        (_set(["spec", "rayClusterSpec", "authOptions"], {"mode": "tokens"}), "tokens"),
        (_set([*HEAD, "rayStartParams", "num-cpus"], 0), "0 is not of type 'string'"),
        (_set([*WORKERS, "maxReplica"], 4), "maxReplica"),
        (_set([*WORKERS, "minReplicas"], "1"), "'1' is not of type 'integer'"),
        (_set([*WORKERS, *CONTAINER, "volumeMount"], []), "volumeMount"),
        (_set([*HEAD, *CONTAINER, "env", 0, "valueFrom"], {"secretRef": {}}), "secretRef"),
        (_set([*WORKERS, "template", "spec", "containers"], None), "None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_slip_would_be_found(job: Any, edit: Callable[[Any], None], wording: str) -> None:
    broken = copy.deepcopy(job)
    edit(broken)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match=wording):
        check(broken)


def test_counts_of_workers_fit_each_other(job: Any) -> None:
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert all(worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"] for worker in workers)
    assert len({worker["groupName"] for worker in workers}) == len(workers)


def test_the_ports_stay_inside_and_ask_for_a_token(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]
    assert cluster["authOptions"]["mode"] == "token"


def test_only_the_head_gets_the_wandb_key_and_from_a_secret(job: Any) -> None:
    found = {group.get("groupName", "head"): group["template"]["spec"]["containers"][0].get("env", []) for group in groups(job)}
    (variable,) = found.pop("head")
    assert variable["name"] == "WANDB_API_KEY"
    assert "value" not in variable
    assert set(variable["valueFrom"]) == {"secretKeyRef"}
    assert not any(found.values())
    assert "runtimeEnvYAML" not in job["spec"]


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
