"""Whole searches on Ray: real trials, real stops, real faults."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from imachsr.config.load import dump_yaml
from imachsr.config.schema import ConfigError
from imachsr.search import tuner
from imachsr.search.database import FILE
from imachsr.search.driver import Driver
from imachsr.search.scheduler import Rungs
from imachsr.search.space import Metric, Search, check_metric, make_search
from imachsr.search.task import rehearse
from imachsr.search.tuner import run_search
from imachsr.train import capacity
from imachsr.train.loop import train
from tests.train.toys import BASE, Bands

OUTPUT_ONLY = {"method.alpha": 0, "method.beta": 0}
GOOD, EPOCHS = [0.5, 0.7, 0.8, 0.6], 4
# Below the arms at every rung, so that whoever comes after them is stopped.
BAD = [[0.1] * 4, [0.2] * 4, [0.3] * 4]


def raw_search(arms: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    run = {
        **BASE,
        # Of 24 samples 6 are selected on and 2 dropped: four steps an epoch.
        "data": {"import": "tests.train.toys:Bands", "count": 24, "has_val": False},
        "model": {"import": "tests.train.toys:faulty", "shares": GOOD, "steps": 4},
        "optimizer": {"epochs": EPOCHS, "batch_size": 4},
    }
    return {
        "run": run,
        "space": {"model.shares": {"choice": BAD}, "method.alpha": {"float": [0.1, 1.0]}},
        "arms": [{"name": "baseline", "set": OUTPUT_ONLY}, *arms],
        "scheduler": {"grace": 1, "reduction": 2},
        "selection": {"fraction": 0.25, "blocks": 1, "guard": 1},
        **parts,
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def states(summary: dict[str, Any]) -> dict[int, str]:
    return {item["number"]: item["state"] for item in summary["trials"]}


def opened(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / FILE}")


def is_halfway(folder: Path) -> bool:
    if not (folder / "summary.json").exists():
        return False
    trials = opened(folder).trials
    # Early in its middle: it must not end while the driver is being killed.
    running = [trial for trial in trials if not trial.state.is_finished() and 1 <= max(trial.intermediate_values, default=0) <= 2]
    return bool(running) and any(trial.state.is_finished() for trial in trials)


def assert_books_agree(folder: Path, summary: dict[str, Any]) -> None:
    """Study, lines, summary and the trials' own folders tell one story."""
    study = opened(folder)
    assert {trial.number: trial.state.name for trial in study.trials} == states(summary)
    count = Counter((line["trial"], line["epoch"]) for line in lines(folder))
    assert set(count.values()) == {1}
    for item, trial in zip(summary["trials"], study.trials, strict=True):
        own = [line for line in lines(folder) if line["trial"] == item["number"]]
        assert [line["epoch"] for line in own] == list(range(1, item["epochs"] + 1))
        assert {line["epoch"]: line["select/miou"] for line in own} == trial.intermediate_values
        if item["state"] == "COMPLETE":
            assert item["value"] == trial.value == own[-1]["select/miou"]
            assert len((folder / "trials" / f"{item['number']:04d}" / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    assert json.loads((folder / "summary.json").read_text())["trials"] == json.loads(json.dumps(summary["trials"]))


def expected_stops(folder: Path, arms: int) -> set[int]:
    """Who is stopped, from the order in which epochs came in."""
    rungs, stopped = Rungs(levels=(1, 2), reduction=2), set()
    for line in lines(folder):
        if rungs.arrive(line["trial"], line["epoch"], line["select/miou"]) and line["trial"] >= arms:
            stopped.add(line["trial"])
    return stopped


@pytest.fixture(scope="module")
def searched(own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Search, dict[str, Any], list[Any]]:
    folder = tmp_path_factory.mktemp("search") / "result"
    marker = folder.parent / "killed"
    arms = [
        {"name": "killed", "set": {"model.fault": "kill", "model.at": 6, "model.marker": str(marker)}},
        {"name": "raising", "set": {"model.fault": "raise", "model.at": 6}},
        {"name": "diverging", "set": {"model.fault": "nan", "model.at": 6}},
    ]
    search = make_search(raw_search(arms, budget={"trials": 6, "concurrency": 2}))
    seen: list[Any] = []
    said: list[str] = []
    summary, _ = run_search(search, folder, on_change=seen.append, say=said.append)
    assert marker.exists()
    (folder / "said").write_text("\n".join(said))
    return folder, search, summary, seen


def test_every_trial_of_a_search_is_in_the_books_with_how_it_ended(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    folder, _, summary, seen = searched
    assert summary["finished"]
    assert [item["arm"] for item in summary["trials"]] == ["baseline", "killed", "raising", "diverging", None, None]
    assert_books_agree(folder, summary)
    assert seen[-1] == summary["trials"]


def test_asha_stops_exactly_those_that_its_rule_names(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    folder, _, summary, _ = searched
    stopped = {number for number, state in states(summary).items() if state == "PRUNED"}
    assert stopped == expected_stops(folder, arms=4)
    assert stopped
    for number in stopped:  # and their training did end
        assert not (folder / "trials" / f"{number:04d}" / "summary.json").exists()


def test_a_trial_whose_worker_was_killed_goes_on_as_if_it_had_not_been(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    folder, _, summary, _ = searched
    killed = summary["trials"][1]
    assert "trial 1: its worker died; it starts again behind epoch 1" in (folder / "said").read_text().splitlines()
    assert (killed["state"], killed["epochs"], killed["error"]) == ("COMPLETE", EPOCHS, None)
    baseline = summary["trials"][0]
    assert killed["value"] == baseline["value"]  # scores to order
    assert killed["difference"] == 0
    assert (killed["troubles"], baseline["troubles"]["restarts"]) == ({"restarts": 1, "resumed": 0, "lost": 0}, 0)
    text = (folder / "trials" / "0001" / "metrics.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in text.splitlines()] == [1, 2, 3, 4]


def test_the_value_is_the_final_epoch_s_although_an_earlier_one_was_better(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    folder, _, summary, _ = searched
    curve = [line["select/miou"] for line in lines(folder) if line["trial"] == 0]
    assert curve.index(max(curve)) == 2
    assert summary["trials"][0]["value"] == curve[-1] < max(curve)


def test_a_trial_that_raises_or_diverges_fails_with_its_reason_and_the_others_go_on(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    _, _, summary, _ = searched
    raising, diverging = summary["trials"][2:4]
    assert (raising["state"], raising["epochs"]) == ("FAIL", 1)
    assert raising["error"] == 'KeyError: "a fault in the user\'s model"'
    assert (diverging["state"], diverging["epochs"]) == ("FAIL", 1)
    assert diverging["error"].startswith("FloatingPointError: every term must be finite, but output loss is nan")
    full = (searched[0] / "trials/0002/error.txt").read_text()
    assert full.startswith("Traceback (most recent call last):")
    assert "tests/train/toys.py" in full
    assert {item["state"] for item in summary["trials"] if item["arm"] is None} <= {"COMPLETE", "PRUNED"}


def test_trials_run_side_by_side(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    _, _, _, seen = searched
    assert max(sum(item["state"] == "RUNNING" for item in trials) for trials in seen) == 2


@pytest.mark.slow
def test_a_trial_that_hangs_exits_or_dies_fails_with_its_reason_and_the_others_go_on(own_ray: None, tmp_path: Path) -> None:
    arms = [{"name": "exiting", "set": {"model.fault": "exit", "model.at": 6}}, {"name": "hanging", "set": {"model.fault": "hang", "model.at": 6}}]
    arms.append({"name": "dying", "set": {"model.fault": "kill", "model.at": 2, "model.marker": str(tmp_path / "died")}})
    raw = raw_search(arms, budget={"trials": 5, "concurrency": 2}, limits={"memory_mib": None})
    raw["run"]["recovery"] = {"hang_minutes": 0.1}
    summary, _ = run_search(make_search(raw), tmp_path / "result", max_failures=0)
    baseline, exiting, hanging, dying, sampled = summary["trials"]
    assert {baseline["state"], sampled["state"]} <= {"COMPLETE", "PRUNED"}
    assert (exiting["state"], exiting["error"], exiting["epochs"]) == ("FAIL", "SystemExit: 3", 1)
    assert (hanging["state"], hanging["epochs"]) == ("FAIL", 1)
    assert hanging["error"].startswith("a step took more than recovery.hang_minutes (stacks in ")
    assert "toys.py" in Path(hanging["error"].partition("stacks in ")[2].rstrip(")")).read_text()
    assert (dying["state"], (tmp_path / "died").exists()) == ("FAIL", True)
    assert [item["troubles"]["lost"] for item in summary["trials"]] == [0, 0, 1, 1, 0]
    assert_books_agree(tmp_path / "result", summary)


@pytest.mark.slow
def test_a_trial_that_does_not_fit_is_infeasible_in_seconds_and_its_region_is_told(own_ray: None, tmp_path: Path) -> None:
    raw = raw_search([], budget={"trials": 4, "concurrency": 1}, limits={"memory_mib": 1500.0}, scheduler={"kind": "none"})
    raw["run"] |= {
        "data": {"import": "tests.train.toys:Bands", "count": 320, "size": 256, "has_val": False},
        "model": {"import": "tests.train.toys:Tiny"},
    }
    raw["run"]["optimizer"] |= {"epochs": 1, "batch_size": 4}
    raw |= {
        "space": {"method.alpha": {"float": [0.1, 1.0]}, "optimizer.batch_size": {"choice": [4, 256]}},
        "sampler": {"startup_trials": 2, "seed": 1},
    }
    raw |= {"points": [{"method.alpha": 0.5, "optimizer.batch_size": 256}]}
    summary, _ = run_search(make_search(raw), tmp_path / "result")
    beyond = [item for item in summary["trials"] if item["params"].get("optimizer.batch_size") == 256]
    assert beyond
    for item in beyond:
        assert (item["state"], item["feasible"], item["epochs"]) == ("PRUNED", False, 0)
        assert item["why"].startswith("infeasible: limits.memory_mib=1500, but a trial would take ")
        assert item["wall_s"] < 30
    assert [item["state"] for item in summary["trials"] if item not in beyond] == ["COMPLETE"] * 4
    told = [trial.constraints for trial in opened(tmp_path / "result").trials if trial.params.get("optimizer.batch_size") is not None]
    assert sum(bool(each) for each in told) == len(beyond)


def test_a_search_whose_data_have_changed_is_not_continued(searched: tuple[Path, Search, dict[str, Any], list[Any]], tmp_path: Path) -> None:
    folder, search, summary, _ = searched
    assert summary["data"] == {"train": search.base().data.load("train").fingerprint()}
    other = tmp_path / "result"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("trials"))
    (other / "summary.json").write_text(json.dumps({**summary, "data": {"train": "0123456789abcdef"}}))
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="train has the fingerprint [0-9a-f]{16} and had 0123456789abcdef; put them back, or begin anew elsewhere"):
        run_search(search, other, resume=True)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_finished_search_is_extended_by_more_trials_and_nothing_runs_again(searched: tuple[Path, Search, dict[str, Any], list[Any]]) -> None:
    folder, search, before, _ = searched
    old = (folder / "trials.jsonl").read_text()
    same, _ = run_search(search, folder, resume=True)
    assert states(same) == states(before)
    assert (folder / "trials.jsonl").read_text() == old
    more = search.model_copy(update={"budget": search.budget.model_copy(update={"trials": 8})})
    after, _ = run_search(more, folder, resume=True)
    assert after["trials"][:6] == json.loads(json.dumps(before["trials"]))
    assert [item["number"] for item in after["trials"]] == list(range(8))
    assert all(item["arm"] is None for item in after["trials"][6:])
    assert (folder / "trials.jsonl").read_text().startswith(old)
    assert {line["trial"] for line in lines(folder)[len(old.splitlines()) :]} == {6, 7}
    assert_books_agree(folder, after)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"cpus_per_trial": 64}, "budget.cpus_per_trial: must be at most the 2 CPUs of the cluster's largest node, but got 64"),
        ({"gpus_per_trial": 1000.0}, "budget.gpus_per_trial: must be at most the .* GPUs of the cluster's largest node, but got 1000"),
    ],
)
def test_a_trial_that_the_cluster_can_never_hold_is_refused_at_once(own_ray: None, tmp_path: Path, budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_search(make_search(raw_search([], budget={"trials": 3, **budget})), tmp_path / "result")
    assert not (tmp_path / "result").exists()  # so that the mended command can be given as it was


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"data": {"import": "tests.train.toys:Bands", "count": 2}}, "both sides must keep samples"),
        ({"model": {"import": "tests.train.toys:nowhere"}}, "module 'tests.train.toys' must have 'nowhere', but has not"),
    ],
)
def test_what_would_fail_in_every_trial_fails_before_any(tmp_path: Path, run: dict[str, Any], message: str) -> None:
    raw = raw_search([], budget={"trials": 3}, space={"method.alpha": {"float": [0.1, 1.0]}})
    ready: list[str] = []
    with pytest.raises(ValueError, match=message):
        run_search(make_search({**raw, "run": {**raw["run"], **run}}), tmp_path / "result", on_ready=lambda: ready.append("told"))
    assert ready == []
    assert not (tmp_path / "result").exists()


def nodes_of(*resources: dict[str, float]) -> Any:
    return lambda: [{"Alive": True, "Resources": each} for each in resources]


def test_a_trial_must_fit_on_one_node_not_on_all_together(own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", nodes_of({"CPU": 4.0}, {"CPU": 4.0}))
    with pytest.raises(ConfigError, match="must be at most the 4 CPUs of the cluster's largest node, but got 6"):
        run_search(make_search(raw_search([], budget={"trials": 3, "cpus_per_trial": 6})), tmp_path / "result")
    monkeypatch.setattr("ray.nodes", nodes_of({"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}))
    with pytest.raises(ConfigError, match="one node of the cluster must have 2 CPUs and 1 GPU for a trial, but none has both"):
        run_search(make_search(raw_search([], budget={"trials": 3, "cpus_per_trial": 2, "gpus_per_trial": 1})), tmp_path / "result")


def reserved(search: Search) -> tuple[int, list[str]]:
    said: list[str] = []
    return tuner._reserve(search, said.append, is_training=True), said


def test_nodes_that_still_start_are_waited_for_where_they_start_by_themselves(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    late = lambda: nodes_of({"CPU": 0.0}, *([{"CPU": 8.0}] if time.monotonic() > started + 1.5 else []))()  # noqa: E731
    monkeypatch.setattr("ray.nodes", late)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "of-kuberay")
    search = make_search(raw_search([], budget={"trials": 3}))
    concurrency, said = reserved(search)
    assert concurrency == 3
    assert "room for 0 of 1 trial (1 CPU) yet: asking its autoscaler for nodes, and waiting up to 300 s" in said[0]
    assert 1.5 < time.monotonic() - started < 30
    monkeypatch.setattr("ray.nodes", nodes_of({"CPU": 0.0}))
    monkeypatch.setattr(capacity, "BOOT_S", 1)
    for _ in range(2):
        with pytest.raises(ConfigError, match="must be at most the 0 CPUs"):
            reserved(search)
        monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)  # then at once


@pytest.mark.parametrize(
    ("budget", "concurrency", "words"),
    [
        ({"trials": 30}, 12, "12 trials at a time: the cluster holds 12, each with 1 CPU"),
        ({"trials": 30, "concurrency": 5}, 5, "5 trials at a time: the cluster holds 12, each with 1 CPU"),
        ({"trials": 3}, 3, "3 trials at a time: the cluster holds 12, each with 1 CPU"),
        (
            {"trials": 30, "cpus_per_trial": 3, "concurrency": 9},
            3,
            "3 trials at a time: the cluster holds 3, each with 3 CPUs; budget.concurrency=9 would not fit",
        ),
        ({"trials": 30, "cpus_per_trial": 2, "workers_per_trial": 2}, 3, "3 trials at a time: the cluster holds 3, each with 2 workers of 2 CPUs"),
    ],
)
def test_as_many_trials_run_at_a_time_as_the_nodes_hold_each_by_itself(
    own_ray: None, monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any], concurrency: int, words: str
) -> None:
    monkeypatch.setattr("ray.nodes", nodes_of({"CPU": 8.0}, {"CPU": 4.0}))
    monkeypatch.setattr(tuner, "connect", lambda **_: None)
    assert reserved(make_search(raw_search([], budget=budget))) == (concurrency, [words])


def test_gpus_that_no_trial_reserves_are_told(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 2.0})
    raw = raw_search([], budget={"trials": 3})
    raw["run"] = {**raw["run"], "compute": {"device": "auto"}}
    with pytest.warns(UserWarning, match="budget.gpus_per_trial is 0; the cluster has GPUs: budget.gpus_per_trial=1 uses them"):
        reserved(make_search(raw))


@pytest.mark.parametrize(
    ("name", "hint"), [("select/mious", "nearest: 'select/miou'"), ("select/iou/raod", "nearest: 'select/iou/road'"), ("val/miou", "'select/miou'")]
)
def test_a_metric_that_no_row_will_have_is_refused_before_any_trial(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"metric.name: must be a key of every trial's rows, but got '{name}'; .*{hint}"):
        run_search(make_search(raw_search([], budget={"trials": 3}, metric={"name": name})), tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_the_keys_that_a_metric_may_have_are_in_every_row() -> None:
    search = make_search(raw_search([], budget={"trials": 3}))
    base = search.run_of(search.arms[0].set_, name="x", seed=0)
    rows = train(base, evaluate_on="select", selection=search.selection).history
    with pytest.raises(ConfigError) as caught:
        check_metric(Metric(name="?"), base.data.class_names)
    known = re.findall(r"'([^']+)'", str(caught.value).partition("known: ")[2])
    assert len(known) == 15
    assert all(set(known) <= set(row) for row in rows)


def test_data_that_arms_share_are_read_once_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = Bands.load

    def counted(self: Bands, split: str) -> Any:
        loads.append(self.count)
        return load(self, split)

    monkeypatch.setattr(Bands, "load", counted)
    arms = [
        {"name": "dice", "set": {"method.loss": "dice"}},
        {"name": "more", "set": {"data.count": 32}},
        {"name": "brier", "set": {"method.loss": "brier"}},
    ]
    rehearse(make_search(raw_search(arms, budget={"trials": 5})))
    assert loads == [24, 32]


def test_what_a_confirmation_needs_at_the_end_is_looked_for_before_the_search() -> None:
    raw = raw_search([], budget={"trials": 3})
    alone = rehearse(make_search(raw))
    with pytest.raises(ValueError, match="val must stay unseen"):
        rehearse(make_search({**raw, "confirm": {"top": 1}}))
    data = {**raw["run"]["data"], "has_val": True}
    both = rehearse(make_search({**raw, "run": {**raw["run"], "data": data}, "confirm": {"top": 1}}))
    assert (set(alone), set(both)) == ({"train"}, {"train", "val"})
    assert both["val"] != both["train"]


@pytest.mark.parametrize(("text", "error"), [("", "the worker died"), ("Traceback\n  x\nOSError: gone\n", "OSError: gone")])
def test_the_file_of_a_dead_worker_may_be_empty(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "error").write_text(text)
    driver = Driver(tmp_path / "result", make_search(raw_search([], budget={"trials": 3})))
    driver.propose()
    monkey = {"result": driver}
    tuner._DRIVERS.update(monkey)
    try:
        ended: Any = SimpleNamespace(config={"number": 0, "output": str(tmp_path)}, error_file=str(tmp_path / "error"))
        tuner._Ends("result").on_trial_error(0, [], ended)
    finally:
        del tuner._DRIVERS["result"]
    assert driver.trials()[0]["error"] == error
    assert (tmp_path / "result/trials/0000/error.txt").read_text().strip() == (text.strip() or error)
    driver.close()


def test_checkpoints_that_this_machine_does_not_see_are_told(tmp_path: Path) -> None:
    (tmp_path / "trials/0000").mkdir(parents=True)
    summary = {"trials": [{"number": 0, "state": "COMPLETE"}, {"number": 1, "state": "COMPLETE"}, {"number": 2, "state": "FAIL"}]}
    with pytest.warns(
        UserWarning, match="must be a folder that all machines of the cluster share, but .* does not see .*0000/checkpoints and 1 more"
    ):
        tuner._check_shared(tmp_path, summary)
    for number in (0, 1):
        (tmp_path / f"trials/{number:04d}/checkpoints").mkdir(parents=True)
        (tmp_path / f"trials/{number:04d}/checkpoints/00000001.json").touch()
    tuner._check_shared(tmp_path, summary)  # a warning would be an error


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_is_finished_and_extended_by_resume(tmp_path: Path, root: Path) -> None:
    folder, path = tmp_path / "result", tmp_path / "search.yaml"
    raw = raw_search([], budget={"trials": 4, "concurrency": 2})
    # A fifth of a second a step, so that there is a middle to be killed in; nobody is stopped.
    raw["run"] = {**raw["run"], "model": {**raw["run"]["model"], "fault": "sleep"}}
    raw["space"] = {**raw["space"], "model.shares": {"choice": [[0.9] * 4, [0.91] * 4]}}
    path.write_text(dump_yaml({**raw, "scheduler": {"kind": "none"}}))
    command = [sys.executable, "-m", "imachsr", "search", str(path), "--output", str(folder), "--wandb", "disabled", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    driver = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # One trial has ended, and another one is in its middle.
        started = time.monotonic()
        while not is_halfway(folder):
            assert driver.poll() is None
            assert time.monotonic() - started < 300
            time.sleep(0.1)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    trials = opened(folder).trials
    finished = {trial.number for trial in trials if trial.state.is_finished()}
    before = lines(folder)
    assert {line["trial"] for line in before} - finished
    # With one trial more than it began with.
    again = [sys.executable, "-m", "imachsr", "search", "--resume", str(folder), "--trials", "5", "--wandb", "disabled", "--json"]
    resumed = subprocess.run(again, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("{"), f"stdout: {resumed.stdout!r}, stderr: {resumed.stderr}"
    summary = json.loads(resumed.stdout)
    assert summary["finished"]
    assert [item["number"] for item in summary["trials"]] == list(range(5))
    assert [item["arm"] for item in summary["trials"]] == ["baseline", None, None, None, None]
    assert set(states(summary).values()) <= {"COMPLETE", "PRUNED"}
    assert summary["sittings"] == 2
    assert {item["number"] for item in summary["trials"] if item["troubles"]["resumed"]} == {trial.number for trial in trials} - finished
    assert_books_agree(folder, summary)
    # Nothing ran again, neither finished trials nor finished epochs: all lines, with their times, are the old ones.
    assert lines(folder)[: len(before)] == before
