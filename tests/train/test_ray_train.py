"""Two Ray Train workers (gloo) of a Ray that is started once, and what becomes of a training when one of them is lost."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from imachsr import cluster
from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.train import capacity
from imachsr.train.checkpoint import load
from imachsr.train.evaluate import evaluate
from imachsr.train.loop import train
from imachsr.train.ray_train import _reserve, train_distributed
from imachsr.train.restarts import Restart
from tests.train.toys import toy_run, without_clock
from tests.train.wounds import SETTINGS, STEPS_AN_EPOCH, steps, wait_until, wounded

Trained = tuple[Path, list[dict[str, float]]]


@pytest.fixture(scope="module")
def trained(own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Never broken."""
    folder, seen = tmp_path_factory.mktemp("ray") / "run", []
    train_distributed(toy_run(**SETTINGS, model=wounded()), workers=2, output=folder, report=seen.append)
    return folder, seen


def assert_as_if_unbroken(folder: Path, seen: list[dict[str, float]], unbroken: Trained) -> None:
    assert [without_clock(row) for row in seen] == [without_clock(row) for row in unbroken[1]]
    one, other = load(unbroken[0])["net"], load(folder)["net"]
    assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


@pytest.mark.long
def test_two_workers_give_what_one_process_gives_with_the_same_global_batch(trained: Trained) -> None:
    # Group norm and no padding; dropout draws otherwise on each worker, hence the tolerance.
    folder, _ = trained
    alone = train(toy_run(**SETTINGS, model=wounded())).history
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for one, two in zip(alone, lines, strict=True):
        assert two.keys() == one.keys()
        assert two["train/lr"] == one["train/lr"]
        for key in ("train/output", "train/loss", "val/loss"):
            assert two[key] == pytest.approx(one[key], rel=0.05), key


@pytest.mark.long
def test_each_row_is_reported_once_as_it_is_on_disk(trained: Trained) -> None:
    folder, seen = trained
    assert seen == [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert json.loads((folder / "summary.json").read_text())["metrics"] == seen[-1]
    assert evaluate(folder)["val/miou"] == pytest.approx(seen[-1]["val/miou"])


@pytest.mark.long
def test_a_folder_that_holds_a_training_is_refused_before_any_worker_starts(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="must be a new folder, but holds a training"):
        train_distributed(toy_run(**SETTINGS), workers=2, output=trained[0])


@pytest.mark.parametrize(
    ("settings", "workers", "message"),
    [
        ({"optimizer__batch_size": 64, "data__kwargs": {"count": 64}}, 64, "must have 64 CPUs for 64 workers, but has 2; lower --workers"),
        ({}, 0, "`1 <= workers` must hold, .* but got 0"),
        ({}, (3, 2), "of a range MIN:MAX `MIN <= MAX`, but got 3:2"),
        ({}, (1, 5), "must be at least 5, one a worker, but the smaller is 4; lower --workers"),
        ({"compute__device": "cuda"}, 2, "`compute.device` must be a device of the cluster, but got 'cuda'"),
    ],
)
def test_what_can_never_run_is_refused_at_once(own_ray: None, tmp_path: Path, settings: dict[str, Any], workers: int, message: str) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("the messages are for a machine without a GPU")
    with pytest.raises(ConfigError, match=message):
        train_distributed(toy_run(**settings), workers=workers, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__kwargs": {"count": 1}}, "the number of training samples must be at least 2, one a worker, but the smaller is 1"),
        ({"data": {"kind": "camvid", "root": "no/such/folder"}}, "`data.root` must be CamVid's folder, but no/such/folder is no folder"),
        ({"data__kwargs": {"has_val": False}}, r"load\('val'\) of 'tests.train.toys:Bands' must work, but: RuntimeError: val must stay unseen"),
        ({"model__kwargs": {"dropout": 7.0}}, "model: 'tests.train.toys:Tiny' must work, but: ValueError: dropout probability"),
        ({"method__loss": ["dice", "brier", "dice"]}, "data, model and method must fit, but: `loss` must hold one loss a tap, but got 3 losses"),
    ],
)
def test_data_and_model_are_tried_before_ray_is_asked(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "nowhere:1")  # to ask would fail in another way
        patch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ValueError, match=message):
            train_distributed(toy_run(**settings), workers=2, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_that_only_workers_can_see_is_told_and_not_retried(own_ray: None, tmp_path: Path) -> None:
    log = tmp_path / "asked"
    run = toy_run(data={"import": "tests.train.toys:HereOnly", "pid": os.getpid(), "log": str(log)})
    with pytest.raises(ConfigError, match=r"load\('train'\) of 'tests.train.toys:HereOnly' must work, but: FileNotFoundError: no such folder"):
        train_distributed(run, workers=2, output=tmp_path / "run")
    assert 1 <= len(log.read_text().splitlines()) <= 2, "once a worker"


@pytest.mark.slow
def test_a_training_that_diverges_is_told_as_such_and_not_retried(own_ray: None, tmp_path: Path) -> None:
    run = toy_run(optimizer__lr=1e30, optimizer__batch_size=8, optimizer__warmup_epochs=0)
    with pytest.raises(FloatingPointError, match="val/loss must be finite, but got .* after epoch 1"):
        train_distributed(run, workers=2, output=tmp_path / "run")


@pytest.mark.long
def test_a_worker_killed_in_the_middle_of_an_epoch_is_replaced_and_nothing_of_the_training_is_lost(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, log = tmp_path / "run", tmp_path / "steps"
    seen: list[dict[str, float]] = []
    restarts: list[Restart] = []
    model = wounded(fault="kill", at=STEPS_AN_EPOCH + 4, marker=str(tmp_path / "killed"), log=str(log))
    train_distributed(toy_run(**SETTINGS, model=model), workers=2, output=folder, report=seen.append, on_restart=restarts.append)
    assert_as_if_unbroken(folder, seen, trained)
    again = steps(log) - 2 * STEPS_AN_EPOCH
    (restart,) = restarts
    assert restart.step == STEPS_AN_EPOCH + 3
    assert restart.workers == 2
    assert 0 <= restart.steps <= again <= 1, "more than the step in which it died was lost"
    assert str(restart).startswith(f"a worker was lost: 2 workers go on after step {STEPS_AN_EPOCH + 3}, ")
    with capsys.disabled():
        print(f"\na worker killed: {restart.seconds:.1f} s to the next step, {again} steps done again")


@pytest.mark.slow
def test_a_worker_that_always_dies_ends_the_training_after_the_restarts_that_are_allowed(own_ray: None, tmp_path: Path) -> None:
    log = tmp_path / "steps"
    run = toy_run(**SETTINGS, recovery__max_restarts=2, model=wounded(fault="kill", at=2, log=str(log)))
    with pytest.raises(
        RuntimeError, match="training failed for good after recovery.max_restarts=2: .*; the last checkpoint is kept, --resume goes on"
    ):
        train_distributed(run, workers=2, output=tmp_path / "run")
    assert steps(log) <= 3 * 2
    assert load(tmp_path / "run")["step"] == 3, "each group had one step done"


@pytest.mark.slow
def test_a_worker_that_hangs_leaves_its_stacks_and_is_replaced(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    seen: list[dict[str, float]] = []
    restarts: list[Restart] = []
    model = wounded(fault="hang", at=3, marker=str(tmp_path / "hung"))
    run = toy_run(**SETTINGS, recovery__hang_minutes=1.0, model=model)
    train_distributed(run, workers=2, output=folder, report=seen.append, on_restart=restarts.append)
    assert_as_if_unbroken(folder, seen, trained)
    (restart,) = restarts
    assert restart.reason.startswith("a step took more than recovery.hang_minutes=1 (stacks in ")
    assert "in _hurt" in (folder / "hang-worker1.txt").read_text()
    assert "wounds.py" in (folder / "hang-worker1.txt").read_text()
    with capsys.disabled():
        print(f"\na worker that hangs, with a limit of 60 s: {restart.seconds:.1f} s to the next step")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_worker_is_named_and_not_tried_again(own_ray: None, tmp_path: Path) -> None:
    log = tmp_path / "steps"
    run = toy_run(**SETTINGS, model=wounded(fault="nan", at=3, log=str(log)))
    with pytest.raises(FloatingPointError, match="must be finite, but .*; the state after step 2 is kept: --resume with recovery.nonfinite=skip"):
        train_distributed(run, workers=2, output=tmp_path / "run")
    assert steps(log) == 3
    assert load(tmp_path / "run")["step"] == 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_worker_is_skipped_by_both_where_that_is_asked_for(own_ray: None, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    run = toy_run(**SETTINGS, recovery__nonfinite="skip", model=wounded(fault="nan", at=3))
    train_distributed(run, workers=2, output=tmp_path / "run", report=seen.append)
    assert [row["train/nonfinite"] for row in seen] == [1, 1]
    assert load(tmp_path / "run")["step"] == 2 * STEPS_AN_EPOCH


@pytest.mark.slow
def test_what_the_users_own_model_raises_is_told_with_its_line_and_not_tried_again(own_ray: None, tmp_path: Path) -> None:
    log = tmp_path / "steps"
    with pytest.raises(RuntimeError, match=r"KeyError: \"a fault in the user's model\" \(wounds.py:\d+\)"):
        train_distributed(toy_run(**SETTINGS, model=wounded(fault="raise", at=3, log=str(log))), workers=2, output=tmp_path / "run")
    assert steps(log) == 3


@contextlib.contextmanager
def command(folder: Path, root: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`imachsr train` on two workers of a Ray of its own, all of whose processes carry a mark; they are ended."""
    model = wounded(log=str(folder / "steps"), pause=0.3)
    (folder / "run.yaml").write_text(dump_yaml(run_to_dict(toy_run(**SETTINGS, model=model))))
    environment = {**os.environ, "PYTHONPATH": str(root), "IMACHSR_MARK": str(folder)}
    words = [sys.executable, "-m", "imachsr", *(options or ("train", str(folder / "run.yaml"), "--workers", "2", "--output", str(folder / "run")))]
    with (folder / "said").open("a") as said:
        process = subprocess.Popen([*words, "--wandb", "disabled"], env=environment, cwd=folder, stdout=said, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)
        for pid in marked(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def marked(folder: Path, part: str = "") -> list[int]:
    """Processes with the mark that live, and have the part in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            is_ours = f"IMACHSR_MARK={folder}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if is_ours and part.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def rows(folder: Path) -> list[dict[str, float]]:
    return [without_clock(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_a_driver_that_is_killed_leaves_nothing_behind_that_writes_and_is_resumed(
    trained: Trained, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, log = tmp_path / "run", tmp_path / "steps"
    with command(tmp_path, root) as driver:
        wait_until(lambda: steps(log) >= STEPS_AN_EPOCH + 3, seconds=240, what="the second epoch")
        assert len(marked(tmp_path, "RayTrainWorker")) == 2
        driver.kill()
        driver.wait(timeout=60)
        gone = wait_until(lambda: not marked(tmp_path, "RayTrainWorker"), seconds=60, what="the end of the workers")
        done = steps(log)
        # Two agents of Ray, which write nothing of a training, look for their node once a minute.
        all_gone = wait_until(lambda: not marked(tmp_path), seconds=150, what="the end of all that the driver had started")
        assert steps(log) == done
    with command(tmp_path, root, "train", str(tmp_path / "run.yaml"), "--workers", "2", "--output", str(folder), "--resume") as driver:
        assert driver.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    assert rows(folder) == [without_clock(row) for row in trained[1]]
    again = steps(log) - 2 * STEPS_AN_EPOCH
    with capsys.disabled():
        print(f"\nthe driver killed: no worker after {gone:.1f} s, no process after {gone + all_gone:.1f} s; {again} steps done again")
    assert again <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_driver_saves_a_checkpoint_and_the_command_that_it_tells_goes_on(
    trained: Trained, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    log = tmp_path / "steps"
    with command(tmp_path, root) as driver:
        wait_until(lambda: steps(log) >= STEPS_AN_EPOCH + 2, seconds=240, what="the second epoch")
        driver.send_signal(number)
        started = time.monotonic()
        assert driver.wait(timeout=120) == code, (tmp_path / "said").read_text()
        seconds = time.monotonic() - started
    said = (tmp_path / "said").read_text()
    assert f"stopped by {number.name} after step {load(tmp_path / 'run')['step']}" in said
    (hint,) = [line.removeprefix("to go on: ") for line in said.splitlines() if line.startswith("to go on: ")]
    with command(tmp_path, root, *shlex.split(hint)[1:]) as driver:
        assert driver.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    assert steps(log) == 2 * STEPS_AN_EPOCH, "no step was done again"
    assert rows(tmp_path / "run") == [without_clock(row) for row in trained[1]]
    with capsys.disabled():
        print(f"\n{number.name} to the driver: ended after {seconds:.1f} s with a checkpoint of its last step")


@pytest.mark.slow
def test_a_signal_while_the_workers_still_start_ends_the_training_at_once(tmp_path: Path, root: Path) -> None:
    with command(tmp_path, root) as driver:
        wait_until((tmp_path / "run" / "ray").is_dir, seconds=240, what="Ray's controller")
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=90) == 143, (tmp_path / "said").read_text()
        said = (tmp_path / "said").read_text()
        assert "stopped by SIGTERM after step 0" in said
        assert "core_worker" not in said, "Ray was still at work"
        wait_until(lambda: not marked(tmp_path), seconds=60, what="the end of all that the driver had started")
    assert not (tmp_path / "steps").exists()


GPUS = [{"CPU": 8.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("device", "nodes", "gone", "is_growing", "kind", "said"),
    [
        ("auto", GPUS, [], False, "GPU", "compute.device=auto: each worker takes a GPU"),
        ("auto", [{"CPU": 4.0}], [], False, "CPU", "compute.device=auto: each worker takes a CPU, since no node has shown a GPU"),
        ("auto", [{"CPU": 4.0}], GPUS, False, "CPU", "compute.device=auto: each worker takes a CPU, since no node has shown a GPU"),
        ("auto", [{"CPU": 4.0}], [], True, "CPU", "a CPU, since no node has shown a GPU; compute.device=cuda would ask the autoscaler for GPUs"),
        ("cpu", GPUS, [], False, "CPU", ""),
        ("cuda", GPUS, [], False, "GPU", ""),
    ],
)
def test_what_auto_takes_is_said(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    nodes: list[dict[str, float]],
    gone: list[dict[str, float]],
    is_growing: bool,
    kind: str,
    said: str,
) -> None:
    there = [{"Alive": True, "Resources": each} for each in nodes] + [{"Alive": False, "Resources": each} for each in gone]
    monkeypatch.setattr("ray.nodes", lambda: there)
    if is_growing:
        monkeypatch.setenv("RAY_CLUSTER_NAME", "of-kuberay")
    lines: list[str] = []
    assert _reserve(toy_run(compute__device=device), 2, lines.append) == kind
    assert len(lines) == bool(said)
    assert not said or lines[0].endswith(said)


def test_an_autoscaler_is_asked_for_gpus_where_a_node_has_had_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": GPUS[0]}])
    monkeypatch.setenv("RAY_CLUSTER_NAME", "of-kuberay")
    asked: list[Any] = []
    monkeypatch.setattr(capacity, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(capacity, "BOOT_S", 0.0)
    with pytest.raises(ConfigError, match="must have 2 GPUs for 2 workers, but has 0; lower --workers, or set compute.device=cpu"):
        _reserve(toy_run(compute__device="auto"), 2, lambda line: None)
    assert asked == [[{"GPU": 1.0}] * 2, []]


def test_a_folder_that_is_not_the_drivers_is_refused_where_a_worker_starts(own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr("imachsr.probe.PATIENCE_S", 0.1)
    (ours / "a").mkdir(parents=True)
    (ours / ".imachsr-shared-old").touch()
    with cluster.marked(ours) as word:
        assert len(list(ours.iterdir())) == 2, "what a killed driver left is gone"
        cluster.require_marked(ours, word)
        with pytest.raises(ConfigError, match=r"--output must be a folder that all nodes .*, but on node [\d.]+ \(\w+\) .*/other is another folder"):
            cluster.require_marked(other, word)
    assert [path.name for path in ours.iterdir()] == ["a"]


@pytest.mark.slow
def test_more_workers_than_this_machine_has_cpus_are_refused_where_ray_starts_by_itself(tmp_path: Path, root: Path) -> None:
    many = 4 * (os.cpu_count() or 1)
    run = toy_run(data__kwargs={"count": many}, optimizer__batch_size=many)
    (tmp_path / "run.yaml").write_text(dump_yaml(run_to_dict(run)))
    words = [sys.executable, "-m", "imachsr", "train", "run.yaml", "--workers", str(many), "--output", "run", "--wandb", "disabled"]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert f"the cluster must have {many} CPUs for {many} workers, but has {os.cpu_count()}; lower --workers" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_can_grow_is_asked_to_and_one_that_cannot_is_not_waited_for(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    there = capacity.room({"CPU": 1.0})
    assert capacity.await_room({"CPU": 1.0}, 99, what="99 workers", say=said.append) == there
    assert said == []
    monkeypatch.setenv("RAY_CLUSTER_NAME", "of-kuberay")
    monkeypatch.setattr(capacity, "BOOT_S", 0.5)
    assert capacity.await_room({"CPU": 1.0}, 99, what="99 workers", say=said.append) == there
    assert said == [
        f"the cluster has room for {there} of 99 workers (1 CPU each) yet: asking its autoscaler for nodes, and waiting up to 0.5 s for them"
    ]


@pytest.mark.parametrize(
    ("bundle", "nodes", "count"),
    [
        ({"CPU": 1.0}, [{"CPU": 2.0}, {"CPU": 3.0}], 5),
        ({"CPU": 2.0, "GPU": 0.0}, [{"CPU": 3.0}, {"CPU": 3.0}], 2),
        ({"CPU": 1.0, "GPU": 0.1}, [{"CPU": 9.0, "GPU": 0.3}, {"CPU": 9.0}], 3),
    ],
)
def test_room_is_that_of_whole_bundles_on_single_nodes(
    monkeypatch: pytest.MonkeyPatch, bundle: dict[str, float], nodes: list[dict[str, float]], count: int
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": each} for each in nodes] + [{"Alive": False, "Resources": {"CPU": 99.0}}])
    assert capacity.room(bundle) == count


def test_ray_client_is_refused_with_the_command_to_use_instead() -> None:
    with pytest.raises(
        ConfigError, match=r"submit it instead: ray job submit --address http://10\.0\.0\.5:8265 --working-dir \. -- python -m imachsr"
    ):
        capacity.check_address("ray://10.0.0.5:10001")
