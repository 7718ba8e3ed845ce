"""How trials are called where they are tracked, when they begin and when they are read back from a result folder."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imachsr.config.load import load_yaml
from imachsr.config.schema import ConfigError
from imachsr.revision import revisions
from imachsr.search.entry import Entry
from imachsr.search.folder import SETTINGS
from imachsr.search.ledger import FILE as LINES
from imachsr.search.space import Search, make_search
from imachsr.search.summary import versions
from imachsr.tracking.events import TrialStart
from imachsr.tracking.recorded import Recorded, load

ENDED = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}
"""What a trial's end is called where it is tracked, by its state in the study."""
TRAINING_ID = "wandb-id"
_OF_THE_SEARCH = ("trial", "arm", "objectives", "held_s", "wall_s")


def trial_id(uid: str, number: int) -> str:
    """The same whenever a search is continued, and no other search's.

    Args:
        uid: Of the study.
        number: Of the trial.
    """
    return f"{uid}-{number:04d}"


def trial_start(search: Search, uid: str, entry: Entry, code: Mapping[str, Any], folder: Path) -> TrialStart:
    """What is told of a trial when it begins.

    Args:
        search: That it belongs to.
        uid: Of the study.
        entry: The trial.
        code: What runs on what: ``versions``, ``revisions`` and the fingerprints of the ``data`` by split.
        folder: Of its training.
    """
    proposal = entry.proposal
    facts = {"number": proposal.number, "arm": proposal.arm, "origin": proposal.origin, "key": proposal.key, "params": proposal.values}
    return start_of(search, uid, facts, entry.config, code, folder)


def start_of(search: Search, uid: str, facts: Mapping[str, Any], config: Mapping[str, Any], code: Mapping[str, Any], folder: Path) -> TrialStart:
    """The same from plain values.

    Args:
        search: That the trial belongs to.
        uid: Of the study.
        facts: ``number``, ``arm``, ``origin``, ``key`` and ``params`` of the trial, as in summary.json.
        config: Everything that its worker is given.
        code: As in :func:`trial_start`, and in summary.json.
        folder: Of its training.
    """
    number, arm = facts["number"], facts["arm"]
    is_baseline = arm is not None and arm == search.arms[0].name
    of_the_trial = {"trial": number, **{name: facts[name] for name in ("arm", "origin", "key")}}
    ran = {"data_fingerprint": code.get("data", {}), **{name: code.get(name, {}) for name in ("versions", "revisions")}}
    return TrialStart(
        id=trial_id(uid, number),
        name=f"{number:04d}" + (f"-{arm}" if arm else ""),
        group=f"{search.name}-{uid}",
        job_type="confirm" if search.score_on == "val" else "baseline" if is_baseline else "trial",
        config={**config, **of_the_trial, "knobs": dict(facts["params"]), "choice": choice(config), **ran},
        tags=(arm,) if arm else (),
        folder=folder,
    )


def choice(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared between trials, in a word or a number each: standard, loss, entropy, the weights and the most taps; {} without a method."""
    method = config.get("method")
    if not isinstance(method, Mapping):
        return {}
    standard = method.get("standard")
    most = standard.get("max_taps") if isinstance(standard, Mapping) else None
    words = {name: _word(method.get(name)) for name in ("standard", "loss", "entropy")}
    return {**words, "alpha": method.get("alpha"), "beta": method.get("beta"), "max_taps": most}


def _word(value: Any) -> str:
    """The kind of what is configured; of several, all of them."""
    if isinstance(value, Mapping):
        if parts := [each for each in (value.get("early"), value.get("late")) if each is not None]:
            return "+".join(map(_word, parts))
        return str(value.get("kind") or value.get("import") or "none")
    if isinstance(value, (list, tuple)):
        return "+".join(map(_word, value))
    return "none" if value is None else str(value)


def sweep_of(search: Search) -> dict[str, Any]:
    """The space as a sweep in W&B, which draws nothing: what trials may belong to, for the views that only sweeps have.

    Its parameters are called as the trials' configurations call them, ``knobs/...``.
    """
    parameters: dict[str, Any] = {}
    for name, knob in search.space.items():
        bounds = knob.int_ or knob.float_
        if bounds is None:
            drawn: dict[str, Any] = {"values": [each if isinstance(each, (bool, int, float, str)) else _word(each) for each in knob.choice or ()]}
        else:
            kind = ("log_uniform_values" if knob.log else "uniform") if knob.float_ else "int_uniform"
            drawn = {"distribution": kind, "min": bounds[0], "max": bounds[1]}
        parameters[f"knobs/{name.replace('.', '/')}"] = drawn
    goal = "maximize" if search.metric.mode == "max" else "minimize"
    about = {"name": search.name, "metric": {"name": search.metric.name, "goal": goal}, "parameters": parameters}
    return {"method": "custom", "controller": {"type": "local"}, **about}


def training_start(config: Mapping[str, Any], folder: Path, key: str) -> TrialStart:
    """What is told of a training that is no trial.

    Args:
        config: Its run, as plain values.
        folder: Of the training.
        key: Its id.
    """
    ran = {"choice": choice(config), "versions": versions(), "revisions": revisions()}
    return TrialStart(id=key, name=config["name"], group=config["name"], job_type="train", config={**config, **ran}, folder=folder)


def recorded(folder: Path) -> list[Recorded]:
    """Runs of a search, a confirmation or a training as its own files have them.

    Args:
        folder: Result folder.

    Raises:
        ConfigError: If it holds none of these, or its files are broken.
    """
    if (held := load(folder)) is not None:
        return list(_trials(folder, held))
    try:
        key, config = (folder / TRAINING_ID).read_text(), load_yaml(folder / "run.yaml")
    except OSError:
        raise ConfigError(f"{folder} must be the folder of a search of which a trial has ended, or of a training that was tracked") from None
    rows = [{name: value for name, value in row.items() if value is not None} for row in _lines(folder / "metrics.jsonl")]
    is_over = (folder / "summary.json").exists()
    return [Recorded(start=training_start(config, folder, key), rows=rows, state="finished" if is_over else "", summary={})]


def _trials(folder: Path, held: Mapping[str, Any]) -> Iterator[Recorded]:
    search = make_search(load_yaml(folder / SETTINGS))
    rows: dict[int, dict[int, dict[str, float]]] = {}
    for line in _lines(folder / LINES):
        row = {name: value for name, value in line.items() if name not in _OF_THE_SEARCH and value is not None}
        rows.setdefault(line["trial"], {}).setdefault(line["epoch"], row)
    for trial in held["trials"]:
        at = folder.absolute() / "trials" / f"{trial['number']:04d}"
        config = load_yaml(at / "run.yaml") if (at / "run.yaml").exists() else {}
        summary = {name: trial[name] for name in ("value", "difference", "epochs", "error", "why", "taps", "footprint")}
        start = start_of(search, held["uid"], trial, config, held, at)
        yield Recorded(start=start, rows=list(rows.get(trial["number"], {}).values()), state=ENDED.get(trial["state"], ""), summary=summary)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file of JSON lines; the last one may be cut off."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
