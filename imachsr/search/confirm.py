"""Is it real? What a search found, on seeds that it never used and data that it never scored: a search of its own, with arms only."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imachsr.config.load import load_yaml, merge, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.files import write_text
from imachsr.revision import revisions
from imachsr.search.canonical import fingerprint
from imachsr.search.folder import PLAN, SETTINGS
from imachsr.search.paired import ALPHA, most_comparisons, pairs_needed, smallest_p
from imachsr.search.space import Search, make_search, search_to_dict
from imachsr.search.space.parameters import settings_of
from imachsr.search.verdict import judge, other_data
from imachsr.tracking.events import Tracker, finite

FOLDER, RESULT = "confirm", "confirm.json"
SCHEMA = 1
TOP, SEEDS = 3, 8
FIRST_SEED = 1000
"""Far from the small numbers that people, and searches, try first."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A confirmation before it runs.

    Attributes:
        search: That runs it: arms only, the baseline first, with every seed.
        facts: What is confirmed, and what the search said of it: plain values, as in plan.json.
    """

    search: Search
    facts: dict[str, Any]

    @property
    def comparisons(self) -> int:
        """With the baseline."""
        return len(self.search.arms) - 1

    def obstacle(self) -> str:
        """Why nothing could win, and what would do; "" when something can."""
        seeds = len(self.search.seeds)
        if self.comparisons <= most_comparisons(seeds):
            return ""
        best = smallest_p(seeds) * self.comparisons
        return (
            f"`2 / 2^seeds x comparisons <= {ALPHA}` must hold, but {seeds} seeds and {self.comparisons} comparisons give {best:.3g}: "
            f"nothing could win, however large the gain; give --seeds {pairs_needed(self.comparisons)}"
        )


def make_plan(
    folder: Path, summary: Mapping[str, Any], *, top: int = TOP, seeds: int = SEEDS, epochs: int | None = None, concurrency: int | None = None
) -> Plan:
    """What is to be confirmed of a search: its best sampled configurations, each once, and all of its arms.

    Args:
        folder: Result folder of the search.
        summary: Its summary.json.
        top: Sampled configurations, >= 1, by the search's value of whole trials; fewer where there are fewer. One that equals an arm is left out.
        seeds: Fresh ones, >= 1: none that a trial of the search had.
        epochs: Of every run, >= 1; those of the search by default.
        concurrency: Runs at a time, >= 1; that of the search by default.

    Raises:
        ConfigError: If a number is out of range, the search was scored on val already, or nothing is there to be compared with the baseline.
    """
    _check_numbers(top=top, seeds=seeds, epochs=epochs, concurrency=concurrency)
    search = make_search(load_yaml(folder / SETTINGS))
    if search.function is not None:
        raise ConfigError(f"{folder} must hold a search over trainings, but holds one of your own function: run that again with fresh `seeds`")
    if search.score_on != "select":
        raise ConfigError(
            f"{folder} must hold a search that was scored on select, but was scored on {search.score_on}: nothing is left to confirm on"
        )
    if not search.arms:
        raise ConfigError(f"{folder} must hold a search with a baseline to compare with, but it has no arms")
    chosen, left_out = _choose(search, summary, top)
    used = {*search.seeds, *(trial["seed"] for trial in summary["trials"])}
    fresh = [seed for seed in range(FIRST_SEED, FIRST_SEED + seeds + len(used)) if seed not in used][:seeds]
    found = _search_of(search, chosen, fresh, epochs, concurrency)
    for each, arm in zip(chosen, found.arms, strict=True):
        optimizer = run_to_dict(found.run_of(arm.set_, name=arm.name, seed=0))["optimizer"]
        each["length"] = {key: optimizer[key] for key in ("epochs", "progressive")}
    facts = {
        "search": search.name,
        "top": top,
        "metric": search.metric.name,
        "confirmed": found.metric.name,
        "mode": search.metric.mode,
        "epochs": found.base().optimizer.epochs,
        "seeds": fresh,
        "used_seeds": sorted(used),
        "candidates": len(_whole(summary)),
        "is_finished": summary["finished"],
        "configurations": chosen,
        "left_out": left_out,
        "revisions": revisions(),
        "data": summary.get("data", {}),
    }
    return Plan(search=found, facts=json.loads(json.dumps(finite(facts))))


def _check_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < 1:
            raise ConfigError(f"`--{name} >= 1` must hold, but got {value}")


def _whole(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sampled trials that ran whole, from the best down."""
    sign = -1 if summary["mode"] == "max" else 1
    whole = [trial for trial in summary["trials"] if trial["arm"] is None and trial["state"] == "COMPLETE" and trial.get("feasible", True)]
    return sorted(whole, key=lambda trial: (sign * trial["value"], trial["number"]))


def _choose(search: Search, summary: Mapping[str, Any], top: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    chosen: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    for arm in search.arms:
        own = [trial for trial in summary["trials"] if trial["arm"] == arm.name]
        known.setdefault(_key(search, arm.set_), arm.name)
        chosen.append(_configuration(search, arm.name, None, arm.set_, [trial for trial in own if trial["state"] == "COMPLETE"]))
    for trial in _whole(summary):
        if len(chosen) == len(search.arms) + top:
            break
        name = f"trial-{trial['number']:04d}"
        same = known.setdefault(_key(search, trial["params"]), name)
        if same != name:
            left_out.append({"trial": trial["number"], "same_as": same})
            continue
        chosen.append(_configuration(search, name, trial["number"], trial["params"], [trial]))
    if len(chosen) == 1:
        raise ConfigError("a sampled trial must have finished, or an arm must stand beside the baseline, to be confirmed, but neither is so")
    return chosen, left_out


def _configuration(search: Search, name: str, number: int | None, values: Mapping[str, Any], trials: list[dict[str, Any]]) -> dict[str, Any]:
    differences = [trial["difference"] for trial in trials if trial["difference"] is not None]
    found = {
        "value": sum(trial["value"] for trial in trials) / len(trials) if trials else None,
        "difference": sum(differences) / len(differences) if differences else None,
        "seeds": [trial["seed"] for trial in trials],
    }
    return {"name": name, "trial": number, "settings": settings_of(search.space, values), "search": found}


def _key(search: Search, values: Mapping[str, Any]) -> str:
    return fingerprint(search.run_of(values, name="same", seed=0))


def _search_of(search: Search, chosen: list[dict[str, Any]], seeds: list[int], epochs: int | None, concurrency: int | None) -> Search:
    run = {key: value for key, value in search.run.items() if key not in ("seed", "name")}
    over = {} if epochs is None else {"optimizer.epochs": epochs}
    budget = search.budget.model_dump(mode="json", include={"concurrency", "cpus_per_trial", "gpus_per_trial", "workers_per_trial"})
    return make_search(
        {
            "name": f"{search.name}-confirm",
            "run": run if epochs is None else merge(run, {"optimizer": {"epochs": epochs}}),
            # An arm that sets its own epochs is overridden too: equal budgets, or the comparison says nothing.
            "arms": [
                {"name": each["name"], "set": {**each["settings"], **(over if "optimizer.epochs" in each["settings"] else {})}} for each in chosen
            ],
            "seeds": seeds,
            "metric": {"name": _on_val(search.metric.name), "mode": search.metric.mode},
            "scheduler": {"kind": "none"},
            "budget": {**budget, "trials": len(chosen) * len(seeds), **({} if concurrency is None else {"concurrency": concurrency})},
            # Caps of time and money were the search's; a step's time depends on what else the machine does.
            "limits": {"memory_mib": search.limits.memory_mib},
            "score_on": "val",
        }
    )


def _on_val(metric: str) -> str:
    return f"val/{metric.removeprefix('select/')}" if metric.startswith("select/") else metric


def load_plan(folder: Path, *, top: int | None = None, seeds: int | None = None, epochs: int | None = None, concurrency: int | None = None) -> Plan:
    """The plan of a confirmation that was begun; what is given must be as it began, but for the concurrency.

    Args:
        folder: Result folder of the confirmation.
        top: As in :func:`make_plan`; None for what it began with, like the others.
        seeds: Likewise.
        epochs: Likewise.
        concurrency: Runs at a time from now on, >= 1.

    Raises:
        ConfigError: If there is none, it is broken, or one of these is another.
    """
    _check_numbers(concurrency=concurrency)
    path = folder / PLAN
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"--resume must go with a confirmation that was begun, but {path} does not exist; leave --resume out") from None
    except ValueError as error:
        raise ConfigError(f"{path} must be JSON, but: {error}") from None
    if not isinstance(held, dict) or held.get("schema") != SCHEMA:
        raise ConfigError(f"{path} must have schema {SCHEMA}, but has not; it was written by something else, or another version of imachsr")
    facts = held["facts"]
    was = {"top": facts["top"], "seeds": len(facts["seeds"]), "epochs": facts["epochs"]}
    for name, value in (("top", top), ("seeds", seeds), ("epochs", epochs)):
        if value is not None and value != was[name]:
            why = "; more seeds after a look at the result would make wins of chance" if name == "seeds" else ""
            raise ConfigError(f"a confirmation must be continued as it began, with --{name} {was[name]}, but got {value}{why}")
    search = make_search(held["search"])
    if concurrency is not None:
        search = search.model_copy(update={"budget": search.budget.model_copy(update={"concurrency": concurrency})})
    return Plan(search=search, facts=facts)


def confirm(
    plan: Plan,
    folder: Path,
    *,
    tracker: Tracker | None = None,
    on_change: Callable[[list[dict[str, Any]]], object] = lambda trials: None,
    on_ready: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda line: None,
    resume: bool = False,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Run a plan, and judge it once all of its runs have ended: nobody is to stop when a look at the half says what was hoped for.

    Args:
        plan: From :func:`make_plan`, or with ``resume`` from :func:`load_plan`.
        folder: Result folder of the confirmation: that of a search, with plan.json and at the end confirm.json beside.
        tracker: As in :func:`imachsr.search.tuner.run_search`, like the next two.
        on_change: Likewise.
        on_ready: Likewise.
        say: Called with a line for the user where the data are not those of the search.
        resume: Go on with the confirmation that is in the folder.

    Returns:
        What confirm.json holds, None when it was interrupted, and the tracker's lines for the user.

    Raises:
        ConfigError: If the folder holds a confirmation and ``resume`` is not set, or for the reasons of a search.
    """
    from imachsr.search.tuner import run_search

    if not resume and (folder / SETTINGS).exists():
        raise ConfigError(f"{folder} must not exist yet, but holds a confirmation; continue it with --resume, or move it away")

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Before the study, so that whatever is there can be continued.
        if not resume:
            held = {"schema": SCHEMA, "facts": plan.facts, "search": search_to_dict(plan.search)}
            write_text(folder / PLAN, json.dumps(held, indent=1) + "\n")
        on_ready()

    def compare(data: Mapping[str, str]) -> None:
        if strange := other_data(plan.facts.get("data", {}), data):
            say(f"note: {strange}")

    summary, lines = run_search(plan.search, folder, tracker=tracker, on_change=on_change, on_data=compare, on_ready=begin, resume=resume)
    if not summary["finished"]:
        return None, lines
    found = judge(plan.facts, summary)
    write_text(folder / RESULT, json.dumps(finite({"schema": SCHEMA, **found}), indent=1) + "\n")
    return found, lines
