"""What a search costs beside its trainings.

    python benchmarks/search_cost.py                     # all of it: about 40 minutes on two cores
    python benchmarks/search_cost.py --only suggest      # seconds to the next proposal, by trials so far
    python benchmarks/search_cost.py --only memory       # of the driver, with 5,000 trials
    python benchmarks/search_cost.py --only trivial      # 500 trials that cost nothing, beside plain Ray Tune with OptunaSearch and ASHA
    python benchmarks/search_cost.py --only added        # seconds that a trial adds to the bare training function
    python benchmarks/search_cost.py --only nested       # the same of trials of two workers

Rows go to stdout as JSON lines. Each measurement of time has a process of its own; `cpu_ms` is that of the driver's process alone, which another
load on the machine does not change, `ms` is by the clock. The trials that cost nothing are a function that reports four rows, two at a time, in
a Ray of two CPUs; ours and Ray's take turns.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, create_trial

from imachsr.search.driver import Driver
from imachsr.search.space import Search, make_search
from imachsr.search.task import Function

EPOCHS = 4
MARK = "SEARCH COST "


def score(values: Mapping[str, Any], epoch: int) -> float:
    """A smooth landscape with a curve to it."""
    return float(-sum((values[f"x{index}"] - 0.3) ** 2 for index in range(5)) - 0.01 * abs(values["n"] - 4) + 0.1 * epoch)


def trivial(values: dict[str, Any], report: Callable[[Mapping[str, float]], object]) -> None:
    for epoch in range(1, EPOCHS + 1):
        report({"score": score(values, epoch)})


def search_of(trials: int, **sampler: Any) -> Search:
    """Eight knobs: five real ones, a logarithm, an integer and a choice."""
    space: dict[str, Any] = {f"x{index}": {"float": [0.0, 1.0]} for index in range(5)}
    space |= {"lr": {"float": [1e-4, 1e-1], "log": True}, "n": {"int": [1, 8]}, "kind": {"choice": ["a", "b", "c"]}}
    return make_search(
        {
            "function": "search_cost:trivial",
            "space": space,
            "arms": [],
            "metric": {"name": "score"},
            "scheduler": {"kind": "asha", "grace": 1, "reduction": 3},
            "sampler": {"startup_trials": 10, **sampler},
            "budget": {"trials": trials, "concurrency": 2},
            "run": {"optimizer": {"epochs": EPOCHS}},
        }
    )


def drawn(search: Search, count: int) -> list[FrozenTrial]:
    """Whole trials at random places."""
    generator, found = random.Random(0), []
    for _ in range(count):
        values = {**{f"x{index}": generator.random() for index in range(5)}, "lr": 10 ** generator.uniform(-4, -1)}
        values |= {"n": generator.randint(1, 8), "kind": generator.choice("abc")}
        params = search.point_params(values)
        found.append(create_trial(params=params, distributions=search.distributions(params), value=score(values, EPOCHS)))
    return found


def run_trial(driver: Driver, proposal: Mapping[str, Any]) -> None:
    for epoch in range(1, EPOCHS + 1):
        if driver.on_row(proposal["number"], {"epoch": epoch, "score": score(proposal["config"], epoch)}):
            break
    driver.on_end(proposal["number"])


def driver_of(folder: str, search: Search) -> Driver:
    return Driver(Path(folder) / "result", search, task=Function(train=trivial, max_epochs=EPOCHS), concurrency=2)


def proposed(driver: Driver) -> dict[str, Any]:
    proposal = driver.propose()
    assert isinstance(proposal, dict), proposal
    return proposal


def suggest(known: int, repeats: int) -> dict[str, Any]:
    """Time to a proposal that is on the disk, and of a trial's whole bookkeeping, with so many trials before."""
    search = search_of(known + repeats + 1)
    with tempfile.TemporaryDirectory() as folder:
        driver = driver_of(folder, search)
        driver.study.learn(drawn(search, known))
        wall, cpu, whole = [], [], []
        for _ in range(repeats):
            began, own = time.perf_counter(), time.process_time()
            proposal = proposed(driver)
            wall.append(1e3 * (time.perf_counter() - began))
            cpu.append(1e3 * (time.process_time() - own))
            run_trial(driver, proposal)
            whole.append(1e3 * (time.process_time() - own))
        driver.close()
    median = {"ms": wall, "cpu_ms": cpu, "trial_cpu_ms": whole}
    return {"what": "suggest", "known": known, **{key: round(statistics.median(values), 1) for key, values in median.items()}}


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(trials: int) -> dict[str, Any]:
    """Of the driver's process before the first and after the last trial, all of them this driver's own; and when it is opened again."""
    with tempfile.TemporaryDirectory() as folder:
        search = search_of(trials, kind="random")
        driver = driver_of(folder, search)
        run_trial(driver, proposed(driver))
        before, own = resident_mib(), time.process_time()
        for _ in range(trials - 1):
            run_trial(driver, proposed(driver))
        after, cpu = resident_mib(), time.process_time() - own
        driver.close()
        began = time.process_time()
        again = Driver(Path(folder) / "result", search, task=Function(train=trivial, max_epochs=EPOCHS), resume=True)
        opened_s = time.process_time() - began
        again.close()
        sizes = {path.name: round(path.stat().st_size / 2**20, 1) for path in (Path(folder) / "result").iterdir() if path.is_file()}
    kib = 1024 * (after - before) / (trials - 1)
    told = {"before_mib": round(before), "after_mib": round(after), "kib_a_trial": round(kib, 1), "trial_cpu_ms": round(1e3 * cpu / (trials - 1), 1)}
    return {"what": "memory", "trials": trials, **told, "resume_cpu_s": round(opened_s, 1), "files_mib": sizes}


def ours(trials: int) -> dict[str, Any]:
    from imachsr.search.tuner import run_search
    from imachsr.train.capacity import connect

    connect(cpus=2)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        function = Function(train=trivial, max_epochs=EPOCHS)
        summary, _ = run_search(search_of(trials), Path(folder) / "result", function=function)
        seconds = time.perf_counter() - began
    assert len(summary["trials"]) == trials
    assert {trial["state"] for trial in summary["trials"]} <= {"COMPLETE", "PRUNED"}
    return {"what": "ours", "seconds": round(seconds, 1), "epochs": sum(trial["epochs"] for trial in summary["trials"])}


def plain(trials: int, *, reuse: bool | None) -> dict[str, Any]:
    """As its documentation has it."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def trainable(config: dict[str, Any]) -> None:
        trivial(config, tune.report)

    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    space: dict[str, Any] = {f"x{index}": tune.uniform(0.0, 1.0) for index in range(5)}
    space |= {"lr": tune.loguniform(1e-4, 1e-1), "n": tune.randint(1, 9), "kind": tune.choice(["a", "b", "c"])}
    options = {} if reuse is None else {"reuse_actors": reuse}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=trials,
                max_concurrent_trials=2,
                search_alg=OptunaSearch(),
                scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=3),
                **options,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        seconds = time.perf_counter() - began
    assert len(found) == trials
    return {"what": f"plain, reuse_actors {'as it is' if reuse is None else reuse}", "seconds": round(seconds, 1)}


def trained(trials: int, *, limits: bool, kind: str) -> dict[str, Any]:
    """A search of short trainings one after another, of one worker or two, or the same configurations in a loop."""
    workers = 2 if kind == "nested" else 1
    raw = {
        "run": {
            "data": {"kind": "scenes", "size": [64, 64], "num_train": 48, "num_val": 8},
            "model": {"kind": "smp", "architecture": "unet", "encoder": "resnet18"},
            "optimizer": {"epochs": 2, "batch_size": 8},
            "compute": {"threads": 1, "device": "cpu"},
        },
        "space": {"method.alpha": {"float": [0.1, 1.0]}, "optimizer.lr": {"float": [1e-4, 1e-2], "log": True}},
        "scheduler": {"kind": "none"},
        "sampler": {"kind": "random"},
        "limits": {} if limits else {"memory_mib": None},
        "budget": {"trials": trials, "concurrency": 1, "workers_per_trial": workers},
    }
    search = make_search(raw)
    with tempfile.TemporaryDirectory() as folder:
        if kind == "bare":
            from imachsr.train.loop import train

            seconds = []
            for number in range(trials):
                values = {"method.alpha": 0.1 + 0.9 * number / trials, "optimizer.lr": 1e-3} if number else {"method.alpha": 0, "method.beta": 0}
                run = search.run_of(values, name=f"bare-{number}", seed=0)
                began = time.perf_counter()
                train(run, output=Path(folder) / str(number), evaluate_on="select", selection=search.selection)
                seconds.append(time.perf_counter() - began)
        else:
            from imachsr.search.tuner import run_search
            from imachsr.train.capacity import connect

            connect(cpus=2, has_dashboard=workers > 1)
            ends: dict[int, float] = {}

            def told(trials_now: list[dict[str, Any]]) -> None:
                for trial in trials_now:
                    if trial["state"] == "COMPLETE":
                        ends.setdefault(trial["number"], time.perf_counter())

            summary, _ = run_search(search, Path(folder) / "result", on_change=told)
            assert {trial["state"] for trial in summary["trials"]} == {"COMPLETE"}
            numbers = sorted(ends)
            seconds = [0.0, *(ends[other] - ends[one] for one, other in zip(numbers, numbers[1:], strict=False))]
    # The first also loads libraries and data, in all of them.
    told_s = {"trial_s": round(statistics.median(seconds[1:]), 2), "each": [round(each, 2) for each in seconds[1:]]}
    return {"what": f"{kind}, limits {limits}", **told_s}


STEPS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "suggest": lambda arguments: [f"suggest({known}, {arguments.repeats})" for known in (0, 10, 100, 300, 1000, 3000)],
    "memory": lambda arguments: [f"memory({arguments.many})"],
    "trivial": lambda arguments: [
        step
        for _ in range(arguments.rounds)
        for step in (f"ours({arguments.trials})", *(f"plain({arguments.trials}, reuse={reuse})" for reuse in (None, True)))
    ],
    "added": lambda arguments: (
        [step for _ in range(arguments.rounds) for step in ("bare", "search") for step in [f"trained(12, limits={step == 'search'}, kind={step!r})"]]
        + ["trained(12, limits=False, kind='search')"]
    ),
    "nested": lambda arguments: ["trained(5, limits=False, kind='bare')", "trained(5, limits=False, kind='nested')"],
}


def measured(step: str) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--step", step]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    told = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not told:
        raise SystemExit(f"{step} failed:\n{done.stderr[-3000:]}")
    row: dict[str, Any] = json.loads(told[0])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STEPS, action="append", help="one part; may be repeated")
    parser.add_argument("--trials", type=int, default=500, help="that cost nothing")
    parser.add_argument("--many", type=int, default=5000, help="trials whose memory is told")
    parser.add_argument("--repeats", type=int, default=40, help="proposals that are timed")
    parser.add_argument("--rounds", type=int, default=2, help="of what is compared")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = eval(arguments.step)  # one of this file's own, above
        print(MARK + json.dumps(row), flush=True)
        return
    rows = []
    for part in arguments.only or STEPS:
        for step in STEPS[part](arguments):
            rows.append({"load": round(os.getloadavg()[0], 1), **measured(step)})
            print(json.dumps(rows[-1]), flush=True)
    times: dict[str, list[float]] = {}
    for row in rows:
        if "seconds" in row:
            times.setdefault(row["what"], []).append(row["seconds"])
    for name, seconds in times.items():
        if name != "ours" and "ours" in times:
            print(json.dumps({"what": f"ours over {name}", "ratio": round(statistics.median(times["ours"]) / statistics.median(seconds), 3)}))


if __name__ == "__main__":
    main()
