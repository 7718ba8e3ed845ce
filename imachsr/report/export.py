"""A trial's settings as a run of its own, and where they come from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imachsr.config.load import dump_yaml, load_run, load_yaml, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.files import write_text
from imachsr.report.table import arms, load_summary
from imachsr.revision import revisions

CONFIRMED = Path("confirm") / "confirm.json"
CONFIRMED_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        trial: Number.
        provenance: Plain values, as in the file's comments: search, trial, seeds, value and difference in the search; what a confirmation found
            (``confirmed``) and where one more run is expected (``expected``), each null without one; fingerprints of the data; versions; revisions.
    """

    trial: int
    provenance: dict[str, Any]


def export(folder: Path, out: Path, *, trial: int | None = None) -> Exported:
    """Write the run of the best finished trial, or of a given one; it trains on all of train and is scored on val.

    An arm counts with the mean over its seeds. In a confirmed search the best is that of the confirmation, and a confirmed configuration has
    the epochs with which it was confirmed. The file's comments say where it comes from.

    Args:
        folder: Result folder of a search.
        out: YAML file to write.
        trial: Number; the best finished one by default.

    Raises:
        ConfigError: If there is no such trial, none has finished, its run.yaml is missing or broken, or ``out`` exists or cannot be written.
    """
    summary, confirmation = load_summary(folder), load_confirmation(folder)
    known = {item["number"]: item for item in summary["trials"]}
    number = trial if trial is not None else preferred(summary, confirmation)
    if number is None:
        raise ConfigError(f"a trial of {folder} must have finished to be exported, but none has; continue the search, or name one with --trial")
    if number not in known:
        raise ConfigError(f"--trial must be one of {', '.join(map(str, sorted(known))) or 'none yet'}, but got {number}")
    if out.exists():
        raise ConfigError(f"{out} must not exist yet, but does; give another --out")
    path = folder / "trials" / f"{number:04d}" / "run.yaml"
    run = run_to_dict(load_run(path))
    if missing := run.keys() - load_yaml(path).keys():  # the rest would silently be defaults
        raise ConfigError(f"{path} must hold the trial's whole run, but lacks {', '.join(sorted(missing))}")
    item = known[number]
    # The share of one trial among others, and its device: as the search was given them.
    run["compute"] |= {"threads": None, "device": _device(folder, item["params"])}
    found = next((each for each in (confirmation or {}).get("configurations", ()) if _is_of(each, item)), None)
    if confirmation is not None and found is not None:
        run["optimizer"] |= found.get("length", {"epochs": confirmation["epochs"]})
    provenance = _provenance(summary, item, run["seed"], run["optimizer"]["epochs"], confirmation, found)
    header = [*_words(summary, item, run["optimizer"]["epochs"], confirmation, found), "provenance:", *_indented(dump_yaml(provenance))]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, "".join(f"# {part}\n" for line in header for part in line.splitlines()) + dump_yaml(run))
    except OSError as error:
        raise ConfigError(f"--out must be a file that can be written, but {out}: {error.strerror}") from None
    return Exported(trial=int(number), provenance=provenance)


def load_confirmation(folder: Path) -> dict[str, Any] | None:
    """confirm/confirm.json of a search's folder; None when it has not been confirmed.

    Raises:
        ConfigError: If it is broken, or of another version.
    """
    return read_confirmation(folder / CONFIRMED)


def read_confirmation(path: Path) -> dict[str, Any] | None:
    """A confirm.json, wherever it lies; None when it is not there.

    Raises:
        ConfigError: As :func:`load_confirmation`.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ConfigError(f"{path} must be JSON, but: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != CONFIRMED_SCHEMA:
        raise ConfigError(f"{path} must have schema {CONFIRMED_SCHEMA}, but has not; it was written by something else, or another version of imachsr")
    return found


def _is_of(configuration: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Whether a confirmed configuration is a trial's."""
    return bool(configuration["name"] == item["arm"] if configuration["trial"] is None else configuration["trial"] == item["number"])


def preferred(summary: Mapping[str, Any], confirmation: Mapping[str, Any] | None) -> int | None:
    """Number of the trial that a confirmation likes best, by its mean; without one, and where that trial is not there, the search's best."""
    best = None if confirmation is None else next((each for each in confirmation["configurations"] if each["name"] == confirmation["best"]), None)
    own = [] if best is None else [item["number"] for item in summary["trials"] if item["state"] == "COMPLETE" and _is_of(best, item)]
    number: int | None = min(own, default=summary["best"])
    return number


def _words(
    summary: Mapping[str, Any], item: Mapping[str, Any], epochs: int, confirmation: Mapping[str, Any] | None, found: Mapping[str, Any] | None
) -> list[str]:
    value = "no value" if item["value"] is None else f"{summary['metric']} {item['value']:.2f} after {item['epochs']} epochs"
    difference = "" if item["difference"] is None else f", {item['difference']:+.2f} against the output-only baseline"
    lines = [f"Trial {item['number']} of search {summary['name']!r}: {value}{difference}."]
    mean = next((arm for arm in arms(summary) if arm.name == item["arm"]), None)
    if mean is not None:
        lines.append(f"Its arm, {mean.words}.")
    if confirmation is None or found is None:
        seeds = "One seed" if mean is None or len(mean.values) == 1 else f"{len(mean.values)} seeds"
        is_left = "" if confirmation is None else " It was not among those that were confirmed."
        lines.append(f"{seeds} on the selection split: a candidate, not a finding. Training this file uses all of train and scores on val.{is_left}")
        return lines
    lines.append(f"Run again with {len(confirmation['seeds'])} seeds that the search never used, {epochs} epochs. {found['words']}.")
    if found["expected"] is not None:
        low, high = found["expected"]
        lines.append(
            f"Training this file is expected to end with {confirmation['confirmed']} from {low:.4g} to {high:.4g}: "
            "the 95 % prediction interval of one more run, not of the mean."
        )
    return lines


def _provenance(
    summary: Mapping[str, Any],
    item: Mapping[str, Any],
    seed: int,
    epochs: int,
    confirmation: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
) -> dict[str, Any]:
    same = [each for each in summary["trials"] if each["number"] == item["number"] or (item["arm"] and each["arm"] == item["arm"])]
    confirmed = expected = None
    if confirmation is not None and found is not None:
        confirmed = {
            "metric": confirmation["confirmed"],
            "epochs": epochs,
            "seeds": confirmation["seeds"],
            **{key: found[key] for key in ("mean", "difference", "interval", "p", "p_holm", "verdict") if found.get(key) is not None},
        }
        if found["expected"] is not None:
            low, high = found["expected"]
            expected = {"metric": confirmation["confirmed"], "low": low, "high": high, "what": "95 % prediction interval of one more run"}
    return {
        "search": summary["name"],
        "trial": item["number"],
        "arm": item["arm"],
        "seed": seed,
        "seeds": sorted({each["seed"] for each in same}),
        "metric": summary["metric"],
        "value": item["value"],
        "difference": item["difference"],
        "epochs": item["epochs"],
        "confirmed": confirmed,
        "expected": expected,
        "data": summary.get("data", {}),
        "versions": summary["versions"],
        "revisions": {"when": "export", **revisions()} if confirmation is None else {"when": "confirmation", **confirmation["revisions"]},
    }


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _device(folder: Path, params: dict[str, Any]) -> str:
    try:
        base = load_yaml(folder / "search.yaml").get("run")
    except ConfigError:
        base = None
    compute = base.get("compute") if isinstance(base, dict) else None
    return str(params.get("compute.device") or (compute.get("device") if isinstance(compute, dict) else None) or "auto")
